"""What becomes of a run's folder when its training file is run once more."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.small_data import make_store, make_tokenizer
from training.export import TOKENIZER_FOLDER
from training.ingest import Ingested
from training.loop import run
from training.mesh import lone_mesh
from training.progress import complete_checkpoints
from training.running import Watch, keep_tokenizer, run_training
from training.spec import TrainingSpec, load_training
from training.trainer import TrainingFailed


def spec_of(folder: Path, tokenizer: Path, **model: Any) -> TrainingSpec:
    shape = {"hidden_size": 16, "ffn_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "num_experts": 2}
    said = {
        "storage": str(folder),
        "model": {"config": shape, "tokenizer": str(tokenizer), **model},
        "data": {"sources": [{"path": str(folder / "corpus.txt")}], "sequence_length": 8},
        "schedule": {"steps": 1, "batch": 2},
        "optimizer": {"warmup_steps": 0},
    }
    (folder / "training.yaml").write_text(yaml.safe_dump(said))
    return load_training(folder / "training.yaml")


@pytest.fixture
def without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are there, and this process is the only rank."""
    store = make_store(tmp_path / "store", [[5, 6, 7, 8, 1]] * 8, vocab_size=258)
    monkeypatch.setattr("training.running.ingest", lambda *given: Ingested(store, None, reused=True))
    monkeypatch.setattr("training.running.num_gpus", lambda: 0.0)
    monkeypatch.setattr("training.running.train", lambda made, *given: run(made, lone_mesh()))


@pytest.mark.usefixtures("without_ray")
def test_a_run_that_cannot_go_on_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Its checkpoint would be exported with the ids of another one."""
    one, other = make_tokenizer(tmp_path / "one"), make_tokenizer(tmp_path / "other", adds_bos=False)
    finished = run_training(spec_of(tmp_path, one), Watch())
    kept = finished.folder / TOKENIZER_FOLDER
    with pytest.raises(TrainingFailed, match="was made from other data"):
        run_training(spec_of(tmp_path, other, seed=5), Watch())
    assert (kept / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    (newest, *_) = complete_checkpoints(finished.folder / "checkpoints")
    (newest / "progress.json").write_text("{")
    with pytest.raises(TrainingFailed, match="once step-00000001 is moved away"):
        run_training(spec_of(tmp_path, other), Watch())
    assert (kept / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()


def test_files_of_two_tokenizers_are_not_mixed(tmp_path: Path) -> None:
    """Those of an earlier try, which left no checkpoint."""
    one, other, folder = make_tokenizer(tmp_path / "one"), make_tokenizer(tmp_path / "other"), tmp_path / "run"
    (one / "chat_template.jinja").write_text("one's own")
    for directory in (one, other, other):
        keep_tokenizer(directory, folder)
    assert sorted(path.name for path in folder.iterdir()) == [TOKENIZER_FOLDER]
    kept = sorted(path.name for path in (folder / TOKENIZER_FOLDER).iterdir())
    assert kept == ["tokenizer.json", "tokenizer_config.json"]


def test_a_run_s_own_tokenizer_may_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keep_tokenizer(make_tokenizer(tmp_path / "one"), folder)
    keep_tokenizer(folder / TOKENIZER_FOLDER, folder)
    assert (folder / TOKENIZER_FOLDER / "tokenizer.json").is_file()


@pytest.mark.parametrize("to", ["elsewhere", "nothing"])
def test_a_link_in_place_of_the_tokenizer_is_replaced(tmp_path: Path, to: str) -> None:
    elsewhere, folder = make_tokenizer(tmp_path / "elsewhere"), tmp_path / "run"
    folder.mkdir()
    (folder / TOKENIZER_FOLDER).symlink_to(tmp_path / to)
    before = sorted(path.name for path in elsewhere.iterdir())
    keep_tokenizer(make_tokenizer(tmp_path / "other", adds_bos=False), folder)
    assert not (folder / TOKENIZER_FOLDER).is_symlink()
    assert (folder / TOKENIZER_FOLDER / "tokenizer.json").is_file()
    assert sorted(path.name for path in elsewhere.iterdir()) == before
