"""What `manta train` and `manta export` show, and what they tell to do next."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.room import Room
from manta.cli import app
from manta.train import TrainingDisplay, export_run, next_words
from model.config import read_config
from tests.training.small_data import make_store, make_tokenizer
from tests.training.test_loop import job
from training.export import TOKENIZER_FOLDER
from training.ingest import Ingested
from training.loop import run
from training.mesh import lone_mesh
from training.progress import Complete, Progress
from training.running import Finished, Watch

NUM_STEPS = 3


def record(step: int, held_out: float | None = None) -> dict[str, Any]:
    return {"step": step, "loss": 4 / step, "held_out_loss": held_out, "tokens_per_s": 1000.0}


def shown(tmp_path: Path, *, terminal: bool, reused: bool = False) -> str:
    """All that a run of three quick steps shows."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with TrainingDisplay(console, NUM_STEPS) as display:
        display.tokens(1, 10)
        display.tokens(2, 20)
        display.data(Ingested(make_store(tmp_path / "store", [[3, 1], [4, 5, 1]]), None, reused))
        display.notice("waiting for room for 2 workers")
        for each in (record(1), record(2, held_out=1.5), record(3)):
            display.record(each)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_a_line_now_and_then_and_the_last_step(tmp_path: Path) -> None:
    assert shown(tmp_path, terminal=False).splitlines() == [
        "reading: 1 documents, 10 tokens",
        "data: 2 documents, 5 tokens",
        "waiting for room for 2 workers",
        "step 3/3: loss 1.333, held out 1.500, 1000 tokens/s",
    ]


def test_a_log_gets_every_step_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manta.train.LINE_EVERY_S", 0)
    lines = shown(tmp_path, terminal=False, reused=True).splitlines()
    assert lines[1:3] == ["reading: 2 documents, 20 tokens", "data: 2 documents, 5 tokens, read before"]
    assert [line.split(":")[0] for line in lines[4:]] == ["step 1/3", "step 2/3", "step 3/3"]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    text = shown(tmp_path, terminal=True)
    last = text.rsplit("training", maxsplit=1)[-1]
    assert "3/3" in last
    assert "loss 1.333, held out 1.500, 1000 tokens/s" in last
    assert "step 3/3" not in text, "the bar says it"


def test_what_to_do_next_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    complete = Complete(folder / "checkpoints" / "step-00000009", Progress(9, 72, "store"), {})
    words = next_words(Finished(folder, job(tmp_path, 0).config, complete))
    assert f"Done: 9 steps, {complete.directory}\n" in words
    assert f"manta export '{folder}' OUT\n" in words
    assert f"tensorboard --logdir '{folder}'/tensorboard" in words


@pytest.fixture
def trained(tmp_path: Path, seed: int) -> Path:
    """The folder of a run with two checkpoints."""
    what = job(tmp_path, seed, steps=4, checkpoint_every=2)
    make_tokenizer(what.folder / TOKENIZER_FOLDER)
    run(replace(what, dtype="float32"), lone_mesh())
    return what.folder


def test_a_run_is_exported_with_its_tokenizer(trained: Path, tmp_path: Path) -> None:
    said = export_run(trained, tmp_path / "out dir", None, "float32")
    assert said == f"Wrote step 4 to {tmp_path}/out dir. Serve it: manta serve '{tmp_path}/out dir'"
    assert read_config(tmp_path / "out dir").dtype == "float32"
    assert (tmp_path / "out dir" / "tokenizer.json").is_file()
    assert export_run(trained, tmp_path / "older", 2, "bfloat16").startswith("Wrote step 2 to ")


def test_a_checkpoint_that_is_not_there_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint of step 3; it has 2, 4"):
        export_run(trained, tmp_path / "out", 3, "float32")
    with pytest.raises(ValueError, match="holds no complete checkpoint; give the folder of a run"):
        export_run(tmp_path / "nothing", tmp_path / "out", None, "float32")


def test_a_damaged_checkpoint_does_not_keep_an_older_one_from_being_exported(trained: Path, tmp_path: Path) -> None:
    (trained / "checkpoints" / "step-00000004" / "progress.json").write_text("{")
    refused = CliRunner().invoke(app, ["export", str(trained), str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert "the next older is step-00000002" in refused.stderr
    assert CliRunner().invoke(app, ["export", str(trained), str(tmp_path / "out"), "--step", "2"]).exit_code == 0


@pytest.mark.parametrize("own", [True, False])
def test_the_command_trains_what_its_file_says(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for Ray and the run itself, which tests/integration/test_ray_train.py has."""
    asked: list[Any] = []

    def run_training(spec: Any, watch: Watch, own_ray: bool) -> Finished:
        asked.extend([spec, own_ray])
        watch.on_record(record(1))
        directory = tmp_path / "runs" / "one" / "checkpoints" / "step-00000001"
        return Finished(tmp_path / "runs" / "one", job(tmp_path, 0).config, Complete(directory, Progress(1, 1, ""), {}))

    monkeypatch.setattr("manta.train.run_training", run_training)
    monkeypatch.setattr("manta.train.present_room", lambda: Room((2.0,), own))
    monkeypatch.setattr(
        "manta.train.open_session", lambda address: SimpleNamespace(close=lambda: asked.append(address))
    )
    file = tmp_path / "training.yaml"
    file.write_text(
        "storage: runs\nmodel: {path: mixtral}\ndata: {sources: [{path: corpus}]}\nschedule: {steps: 9, batch: 2}\n"
        "optimizer: {warmup_steps: 0}\n"
    )
    done = CliRunner().invoke(app, ["train", str(file), "--steps", "1", "--address", "auto"])
    assert (done.exit_code, done.output.count("step 1/1: loss 4.000")) == (0, 1), done.output
    assert "manta export" in done.stdout
    assert (asked[0].schedule.steps, *asked[1:]) == (1, own, "auto"), "and Ray is let go"
