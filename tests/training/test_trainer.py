"""What is told of a run that Ray Train has given up."""

from pathlib import Path

import pytest
from ray.train.torch.config import _is_backend_nccl  # pyright: ignore[reportPrivateUsage]
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from tests.training.test_loop import job
from training import trainer
from training.loop import TrainingStopped
from training.mesh import lone_mesh
from training.progress import DamagedCheckpoint, OtherRun
from training.trainer import backend_of, reason_of
from training.workers import Workers


def test_workers_that_found_no_room_are_told_with_the_setting(tmp_path: Path, seed: int) -> None:
    workers = Workers(2, 2, num_cpus=3, start_timeout_s=20)
    reason = reason_of(ControllerError(WorkerGroupStartupTimeoutError(2)), job(tmp_path, seed), workers)
    assert reason.startswith(
        "no room within 20 s (limits.start_timeout_s) for 2 workers with 3 CPU each, and limits.max_failures (3) "
        "allows no further try; there is no checkpoint yet; end what holds the rest"
    )


@pytest.mark.parametrize(
    "echo",
    [
        "[gloo] Connection closed by peer",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711",
        "NCCL communicator was aborted on rank 0.",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 300001 ms",
        "NCCL error in: NCCLUtils.hpp:254, remote process exited or there was a network error, NCCL version 2.27.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    ],
)
def test_the_rank_that_failed_by_itself_is_named(echo: str, tmp_path: Path, seed: int) -> None:
    failures: dict[int, Exception] = {0: RuntimeError(echo), 1: ValueError("no more room"), 2: ValueError("nor here")}
    reason = reason_of(WorkerGroupError("three ranks failed", failures), job(tmp_path, seed), Workers(3, 3))
    assert reason == "rank 1: no more room"


@pytest.mark.parametrize("kind", [OtherRun, DamagedCheckpoint, TrainingStopped])
def test_what_another_try_would_not_mend_is_returned(
    kind: type[Exception], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rank raises, Ray Train answers with another try."""

    def run(*given: object) -> None:
        raise kind("step-00000002 is no good")

    monkeypatch.setattr("training.trainer.run", run)
    monkeypatch.setattr("training.trainer._mesh", lambda *given: lone_mesh())
    monkeypatch.setattr("torch.set_num_threads", lambda num: None)
    said = trainer._work({"job": job(tmp_path, seed), "workers": Workers()})  # pyright: ignore[reportPrivateUsage]
    assert said == "step-00000002 is no good"


def test_on_gpus_the_cpu_has_a_backend_too() -> None:
    """`async_save` asks for it, also of a single rank."""
    backend = backend_of(Workers(num_gpus=1))
    assert dict(part.split(":") for part in backend.split(",")) == {"cpu": "gloo", "cuda": "nccl"}
    assert _is_backend_nccl(backend), "Ray knows it for what it is"
    assert backend_of(Workers()) == "gloo"


def test_gpus_that_no_worker_uses_are_named() -> None:
    expected = "Ray has 8 GPUs, and workers compute on CPUs; with parallel: {num_gpus: 1} each has one"
    assert Workers().unused_gpus(8) == expected
    assert Workers(num_gpus=1).unused_gpus(8) is None
    assert Workers().unused_gpus(0) is None
