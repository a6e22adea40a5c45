"""`python -m training FILE`: what it prints, and how it ends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.test_loop import job
from training.__main__ import main
from training.progress import Complete, Progress
from training.room import NoRoom
from training.running import Finished, Watch
from training.trainer import TrainingFailed


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "training.yaml"
    path.write_text(
        "storage: runs\nmodel: {path: mixtral}\ndata: {sources: [{path: corpus}]}\nschedule: {steps: 900, batch: 2}\n"
    )
    return str(path)


def runs(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | Finished) -> None:
    """Makes every run make one step and end so; no Ray is joined."""

    def run_training(spec: Any, watch: Watch) -> Finished:
        watch.on_waiting("waiting for room")
        watch.on_record({"step": 1, "loss": 4, "held_out_loss": 3, "tokens_per_s": 10, "gradient_norm": 2})
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    monkeypatch.setattr("training.__main__.refuse_open", lambda address: None)
    monkeypatch.setattr("training.__main__.run_training", run_training)


@pytest.mark.parametrize("arguments", [[], ["a.yaml", "b.yaml"]])
def test_it_takes_one_file(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == "usage: python -m training FILE.yaml\n"


def test_a_run_is_a_line_a_step_and_where_its_checkpoint_is(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = Complete(tmp_path / "step-00000900", Progress(900, 1800, "store"), {})
    runs(monkeypatch, Finished(tmp_path, job(tmp_path, 0).config, complete))
    assert main([file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "waiting for room",
        "step 1: loss 4.0000, held out 3.0000, 10 tokens/s, gradient 2.000",
        f"done: {complete.directory}",
    ]


@pytest.mark.parametrize(
    ("failure", "status", "expected"),
    [
        (ValueError("no such tokenizer"), 2, "error: no such tokenizer\n"),
        (TrainingFailed("rank 1: no more room"), 1, "error: rank 1: no more room\n"),
        (NoRoom("no room within 2 s"), 1, "error: no room within 2 s\n"),
        (OSError("tokens cannot be written"), 1, "error: tokens cannot be written\n"),
        (KeyError("shape"), 1, "error: KeyError: 'shape' (MANTA_TRACEBACK=1 shows where)\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_a_failure_is_one_message_and_an_exit_status(
    file: str,
    failure: BaseException,
    status: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs(monkeypatch, failure)
    assert main([file]) == status
    assert capsys.readouterr().err == expected


def test_a_traceback_is_shown_on_demand(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, RuntimeError("shapes cannot be multiplied"))
    monkeypatch.setenv("MANTA_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        main([file])


def test_a_file_that_does_not_describe_a_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training.yaml").write_text("storage: runs\n")
    assert main([str(tmp_path / "training.yaml")]) == 2
    assert "model: is missing" in capsys.readouterr().err
