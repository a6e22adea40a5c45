"""Small runs under Ray Train, and what they are compared with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.small_data import make_tokenizer
from training.loop import run
from training.mesh import lone_mesh
from training.metrics import read_metrics
from training.resolve import job_of
from training.running import Finished
from training.spec import TrainingSpec, training_from_dict

STEPS = 40
TRAINING_S = 240.0


def write_files(folder: Path) -> None:
    """Writes a tokenizer, and some text that can be learnt."""
    make_tokenizer(folder / "tokenizer")
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number:02}.txt").write_text(f"file {number} counts: " + "one two three " * 12)


def spec_of(folder: Path, name: str, **sections: dict[str, Any]) -> TrainingSpec:
    """Two workers that share the experts; small steps in float64, so that any two runs have the same curve."""
    config = {
        "hidden_size": 32,
        "ffn_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "num_experts": 4,
        "window": 24,
        "max_context": 256,
    }
    data: dict[str, Any] = {
        "name": name,
        "storage": str(folder / "storage"),
        "model": {"tokenizer": str(folder / "tokenizer"), "config": config, "dtype": "float64"},
        "data": {"sources": [{"path": str(folder / "text")}], "sequence_length": 48, "held_out": 0.2},
        "parallel": {"workers": 2, "expert_parallel": 2, "num_cpus": 0.2},
        "optimizer": {"warmup_steps": 1},
        "schedule": {"steps": STEPS, "batch": 4, "evaluate_every": 10},
        "checkpoints": {"every": 10},
        "limits": {"collective_timeout_s": 60},
    }
    for section, fields in sections.items():
        data[section] = {**data.get(section, {}), **fields}
    return training_from_dict(data)


def undisturbed(spec: TrainingSpec, finished: Finished, folder: Path) -> list[dict[str, Any]]:
    """The records of the same run, made by this process alone."""
    (store,) = (Path(spec.storage) / "data").glob("*/training")
    job = job_of(spec, finished.config, store, store.parent / "held_out")
    run(replace(job, folder=folder), lone_mesh())
    return read_metrics(folder)


def same_curve(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Both have every step, and the same in it."""
    assert [one["step"] for one in records] == list(range(1, len(expected) + 1))
    for one, other in zip(records, expected, strict=True):
        assert one["samples_seen"] == other["samples_seen"]
        for name in ("loss", "balance", "gradient_norm", "held_out_loss"):
            assert (one[name] is None) == (other[name] is None)
            assert one[name] is None or one[name] == pytest.approx(other[name], rel=1e-7), (name, one["step"])
