"""Starts a run's ranks with Ray Train, and starts them again when one of them dies."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from training.interrupts import ctrl_c_interrupts
from training.loop import Job, TrainingStopped, run
from training.mesh import Mesh, elastic_shape, lone_mesh, make_mesh, mesh_shape
from training.metrics import Follower, MetricsError
from training.progress import DamagedCheckpoint, OtherRun, newest_in
from training.room import REMEDY, wait_for_room
from training.workers import Workers

POLL_S = 0.5
RAY_FOLDER = "ray"  # in the run's folder: what Ray Train itself keeps
CPU_BACKEND = "gloo"
GPU_BACKEND = "cpu:gloo,cuda:nccl"  # `async_save` asks for the CPU's, also of a single rank
ECHOES = ("gloo", "nccl", "connection closed")  # in what a rank says that waited for one that is gone


class TrainingFailed(RuntimeError):
    """A run has ended before its last step; says why, and what there is to go on from."""


def train(
    job: Job,
    workers: Workers,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    on_waiting: Callable[[str], None] = lambda why: None,
) -> None:
    """Runs a job to its end on the Ray that this process has joined.

    Args:
        on_record: Called, in a thread of its own, with each step's record (`training.metrics.Record` as plain data).
        on_waiting: Called if there is no room for the workers yet.

    Raises:
        MeshError: The ranks cannot be laid out as asked for.
        NoRoom: There is no room for the workers.
        TrainingFailed: It did not reach its end.
        KeyboardInterrupt: Ctrl-C has ended it.
    """
    if workers.fewest == workers.most:
        mesh_shape(workers.most, workers.expert_parallel, job.config.num_experts)
    wait_for_room(workers, on_waiting)
    job.folder.mkdir(parents=True, exist_ok=True)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(workers.start_timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(workers.collective_timeout_s)
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(job.folder, on_record, done), daemon=True)
    follower.start()
    try:
        with ctrl_c_interrupts():
            result = _trainer(job, workers).fit()
    except TrainingFailedError as error:
        raise TrainingFailed(reason_of(error, job, workers)) from error
    finally:
        done.set()
        follower.join()
    if result.return_value:
        raise TrainingFailed(str(result.return_value))


def _trainer(job: Job, workers: Workers) -> TorchTrainer:
    num_workers = workers.most if workers.fewest == workers.most else (workers.fewest, workers.most)
    return TorchTrainer(
        _work,
        train_loop_config={"job": job, "workers": workers},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=workers.num_gpus > 0, resources_per_worker=workers.resources
        ),
        torch_config=TorchConfig(backend=backend_of(workers), timeout_s=int(workers.collective_timeout_s)),
        run_config=RunConfig(
            name="run",
            storage_path=str((job.folder / RAY_FOLDER).absolute()),
            failure_config=FailureConfig(
                max_failures=workers.max_failures,
                controller_failure_limit=workers.max_failures,  # placements; Ray would try for ever
                max_preemption_failures=-1,  # hosts taken away with notice are no fault of the run's
            ),
        ),
    )


def backend_of(workers: Workers) -> str:
    """Returns what the ranks exchange tensors over, as `torch.distributed.init_process_group` names it."""
    return GPU_BACKEND if workers.num_gpus else CPU_BACKEND


def _work(config: dict[str, Any]) -> str:
    """What each rank does. Returns why it stopped before the end; empty: it did not."""
    job, workers = config["job"], config["workers"]
    torch.set_num_threads(max(1, int(workers.num_cpus)))
    try:
        run(job, _mesh(job, workers))
    except (TrainingStopped, OtherRun, DamagedCheckpoint) as error:
        return str(error)  # not raised: Ray Train would start the ranks again, to the same end
    return ""


def _mesh(job: Job, workers: Workers) -> Mesh:
    world, device = get_context().get_world_size(), get_device()
    if world == 1 or not dist.is_initialized():
        return lone_mesh(device)
    shape = elastic_shape(world, workers.expert_parallel, job.config.num_experts)
    return make_mesh(shape, device, workers.collective_timeout_s)


def _follow(folder: Path, on_record: Callable[[dict[str, Any]], None], done: threading.Event) -> None:
    """Passes each step's record on, once."""
    with suppress(MetricsError):  # the first rank ends the run with it
        follower, ended = Follower(folder), False
        while not ended:
            ended = done.wait(POLL_S)
            for record in follower.read():
                on_record(record)


def reason_of(error: TrainingFailedError, job: Job, workers: Workers) -> str:
    """The failure of one rank: the lowest of those that do not merely say that another is gone."""
    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        why = f"{workers.no_room()}, and limits.max_failures ({workers.max_failures}) allows no further try"
        return f"{why}; {newest_in(job.checkpoints)}; {REMEDY}"
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return str(error)
    rank, cause = min(error.worker_failures.items(), key=lambda item: (_is_echo(item[1]), item[0]))
    inner = getattr(cause, "cause", None) or getattr(cause, "base_exc", None) or cause
    return f"rank {rank}: {inner}"


def _is_echo(error: BaseException) -> bool:
    return any(echo in str(error).lower() for echo in ECHOES)
