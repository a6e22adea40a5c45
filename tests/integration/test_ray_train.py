"""Runs under Ray Train: they reach their end though a worker is killed, and say why where they cannot."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from transformers import MixtralForCausalLM

from tests.integration.ray_service import complete, kill, running_service, wait_until
from tests.integration.test_ray_command import manta
from tests.integration.training_runs import STEPS, TRAINING_S, same_curve, spec_of, undisturbed, write_files
from training.data_errors import DataError
from training.export import export
from training.metrics import read_metrics
from training.progress import PROGRESS_FILE, complete_checkpoints, step_of
from training.room import NoRoom
from training.running import Finished, Watch, run_training
from training.spec import TrainingSpec
from training.trainer import TrainingFailed

pytestmark = pytest.mark.cluster

WORKER = "ray::RayTrainWorker"
BEFORE_KILL = 12  # steps


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, ray_port: int) -> Path:
    """A folder with a tokenizer and some text that can be learnt; its tokens are made by the first run."""
    del ray_port  # a Ray runs
    folder = tmp_path_factory.mktemp("training")
    write_files(folder)
    return folder


class Killing(threading.Thread):
    """Kills a worker of a run once that has made some steps. (The run itself needs the main thread.)"""

    def __init__(self, folder: Path, saving: bool) -> None:
        super().__init__()
        self._folder = folder
        self._saving = saving
        self.victims: list[int] = []
        self.broken_off: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._kill()
        except BaseException as error:
            self.error = error

    def _kill(self) -> None:
        wait_until(lambda: len(read_metrics(self._folder)) > BEFORE_KILL, TRAINING_S, "the run is on its way")
        self.victims = workers()
        if self._saving:
            wait_until(self._stopped_during_a_save, TRAINING_S, "the workers stand still in the middle of a save")
        kill(self.victims[1])
        for pid in self.victims:
            os.kill(pid, signal.SIGCONT)

    def _stopped_during_a_save(self) -> bool:
        """Stops the workers; whether a save had begun by then and was not done. If not, they go on."""
        partial = self._folder / "checkpoints"
        if not list(partial.glob("*.partial")):
            return False
        for pid in self.victims:
            os.kill(pid, signal.SIGSTOP)
        self.broken_off = [path.name for path in partial.glob("*.partial") if not (path / PROGRESS_FILE).exists()]
        if not self.broken_off:
            for pid in self.victims:
                os.kill(pid, signal.SIGCONT)
        return bool(self.broken_off)


def workers() -> list[int]:
    """The training workers of this session's Ray: children of its raylet."""
    session = ray._private.worker._global_node.get_session_dir_path()  # pyright: ignore
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if not (process / "cmdline").read_text().startswith(WORKER):
                continue
            parent = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
            if session in Path(f"/proc/{parent}/cmdline").read_text():
                found.append(int(process.name))
    return found


@dataclass(frozen=True)
class KilledRun:
    """A run of which a worker was killed, and that went on to its end."""

    spec: TrainingSpec
    finished: Finished
    broken_off: list[str]  # saves that were under way when it was killed


def killed_run(files: Path, name: str, every: int, saving: bool) -> KilledRun:
    spec = spec_of(files, name, checkpoints={"every": every})
    killing = Killing(files / "storage" / name, saving)
    killing.start()
    finished = run_training(spec, Watch())
    killing.join()
    assert killing.error is None, killing.error
    assert len(killing.victims) == 2
    return KilledRun(spec, finished, killing.broken_off)


@pytest.fixture(scope="session")
def killed_during_a_save(files: Path) -> KilledRun:
    return killed_run(files, "saving", 2, saving=True)


def nothing_has_changed(run: KilledRun, folder: Path) -> None:
    records = read_metrics(run.finished.folder)
    same_curve(records, undisturbed(run.spec, run.finished, folder))
    assert records[-1]["loss"] < 0.85 * records[0]["loss"]
    assert not list((run.finished.folder / "checkpoints").glob("*.partial"))


def test_a_worker_killed_during_a_save_changes_nothing(killed_during_a_save: KilledRun, tmp_path: Path) -> None:
    assert killed_during_a_save.broken_off, "a save was under way"
    assert killed_during_a_save.finished.checkpoint.progress.step == STEPS
    nothing_has_changed(killed_during_a_save, tmp_path)


@pytest.mark.full
def test_a_worker_killed_between_saves_changes_nothing(files: Path, tmp_path: Path) -> None:
    run = killed_run(files, "between", 10, saving=False)
    assert run.finished.checkpoint.progress.step == STEPS
    nothing_has_changed(run, tmp_path)


def test_from_training_to_served_tokens(killed_during_a_save: KilledRun, files: Path, ray_port: int) -> None:
    """Those of a run that was killed in between: a run of its own would take as long again, and prove no more."""
    out = files / "out"
    export(killed_during_a_save.finished.checkpoint, out, "float32", files / "tokenizer")
    theirs: Any = MixtralForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    prompt = [0, 70, 75, 80]
    with torch.no_grad():
        whole: Any = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=1)
    expected = whole[0, len(prompt) :].tolist()
    with running_service(out, ray_port, "trained") as service:
        answer = complete(service.client(), prompt, 24, extra_body={"return_token_ids": True, "ignore_eos": True})
    assert answer.token_ids[: len(expected)] == expected


@pytest.mark.full
def test_a_training_file_as_a_ray_job(files: Path) -> None:
    spec = spec_of(files, "job", schedule={"steps": 2}, parallel={"workers": 1, "expert_parallel": 1})
    path = files / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "training", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRAINING_S, check=False)
    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in steps] == ["step 1", "step 2"]
    assert last == f"done: {files / 'storage' / 'job' / 'checkpoints' / 'step-00000002'}"


@pytest.mark.full
def test_ctrl_c_ends_a_run_that_the_same_command_goes_on_with(files: Path, tmp_path: Path) -> None:
    spec = spec_of(files, "stopped", schedule={"steps": 100_000}, parallel={"workers": 1, "expert_parallel": 1})
    path = files / "stopped.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    args = ("train", str(path), "--address", ray.get_runtime_context().gcs_address)
    checkpoints = files / "storage" / "stopped" / "checkpoints"
    with manta(tmp_path, *args) as command:
        wait_until(lambda: complete_checkpoints(checkpoints), TRAINING_S, "a checkpoint", lambda: command.output)
        command.send(signal.SIGINT)
        command.ends_with(130)
        assert "Traceback" not in command.output, command.output
        assert "Stopped; the newest complete checkpoint is step-000" in command.output
    (newest, *_) = complete_checkpoints(checkpoints)
    finished = run_training(spec_of(files, "stopped", schedule={"steps": step_of(newest) + 2}), Watch())
    assert finished.checkpoint.progress.step == step_of(newest) + 2


@pytest.mark.full
def test_a_range_takes_its_most_workers_where_there_is_room_for_them(files: Path) -> None:
    parallel = {
        "workers": {"min": 1, "max": 3},
        "expert_parallel": 2,
        "num_cpus": 0.1,
    }  # three cannot share four experts
    run_training(spec_of(files, "elastic", parallel=parallel, schedule={"steps": 4}), Watch())
    last = read_metrics(files / "storage" / "elastic")[-1]
    assert (last["step"], last["workers"], last["expert_parallel"]) == (4, 3, 1)


@pytest.mark.full
@pytest.mark.hosts
def test_a_run_goes_on_with_the_workers_that_are_left(tmp_path: Path) -> None:
    """In a process of its own, which has a Ray cluster of two fake hosts: this session's is left alone."""
    command = [sys.executable, "-m", "tests.integration.elastic_training", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_S, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "by the one that was left" in done.stdout


def test_no_room_for_the_workers_is_said_in_time(files: Path) -> None:
    spec = spec_of(files, "crowded", parallel={"num_cpus": 64}, limits={"start_timeout_s": 2})
    waiting: list[str] = []
    began_s = time.monotonic()
    with pytest.raises(
        NoRoom, match=r"within 2 s \(limits.start_timeout_s\) for 2 workers with 64 CPU each; free on .* of 2 CPU; end"
    ):
        run_training(spec, Watch(on_waiting=waiting.append))
    assert time.monotonic() - began_s < 60
    assert len(waiting) == 1
    assert not (files / "storage" / "crowded" / "ray").exists(), "nothing was started"


@pytest.mark.full
def test_it_goes_on_where_it_stopped(files: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    run_training(spec_of(files, "twice", schedule={"steps": 10}), Watch())
    watch = Watch(on_record=lambda record: seen.append(record["step"]))
    run_training(spec_of(files, "twice", schedule={"steps": 15}, parallel={"workers": 1, "expert_parallel": 1}), watch)
    assert seen == [11, 12, 13, 14, 15]


def test_a_loss_that_is_no_number_is_not_tried_again(files: Path) -> None:
    spec = spec_of(
        files,
        "broken",
        optimizer={"name": "sgd", "peak_lr": 1e200, "final_lr": 1e200, "warmup_steps": 0, "clip_norm": None},
        checkpoints={"every": 1},
        parallel={"workers": 1, "expert_parallel": 1},
    )
    began_s = time.monotonic()
    with pytest.raises(
        TrainingFailed, match=r"step \d+ .*(there is no checkpoint yet|newest complete checkpoint is step-0)"
    ):
        run_training(spec, Watch())
    assert time.monotonic() - began_s < 60
    records = read_metrics(files / "storage" / "broken")
    assert [one["step"] for one in records] == list(range(1, len(records) + 1))


@pytest.mark.full
def test_storage_that_is_no_folder_is_named(files: Path) -> None:
    (files / "storage" / "blocked").mkdir(parents=True)
    (files / "storage" / "blocked" / "checkpoints").write_text("a file where a folder is to be")
    with pytest.raises(TrainingFailed, match=r"blocked/checkpoints cannot be read: Not a directory"):
        run_training(spec_of(files, "blocked", limits={"max_failures": 0}), Watch())


def test_empty_data_are_named(files: Path) -> None:
    (files / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        run_training(spec_of(files, "empty", data={"sources": [{"path": str(files / "empty")}]}), Watch())


@pytest.mark.full
def test_a_checkpoint_of_another_shape_is_named(files: Path) -> None:
    spec = spec_of(files, "shape", schedule={"steps": 2})
    run_training(spec, Watch())
    (found,) = complete_checkpoints(files / "storage" / "shape" / "checkpoints")
    path = found / PROGRESS_FILE
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "config": {**said["config"], "ffn_size": 7}}))
    with pytest.raises(TrainingFailed, match=r"another model: ffn_size 7 \(now 48\)"):
        run_training(spec_of(files, "shape", schedule={"steps": 4}, limits={"max_failures": 0}), Watch())
    assert found.is_dir()
