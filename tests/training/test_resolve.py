"""From a training file to what ranks are told: the model that is trained on, and what a worker sets aside."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import read_config
from model.routing import BY_TOKEN, Routing
from tests.random_checkpoint import make_checkpoint
from training.data_errors import StoreNotWritten
from training.ingest import Ingested
from training.mesh import lone_mesh
from training.model import TrainModel
from training.resolve import job_of, model_of, workers_of
from training.running import Watch, run_training
from training.spec import SpecError, TrainingSpec, training_from_dict
from training.starting import CheckpointWeights

CONTEXT = 128


@pytest.fixture
def checkpoint(tmp_path: Path, seed: int) -> Path:
    """A small Mixtral of four experts."""
    make_checkpoint(tmp_path / "model", seed=seed, num_experts=4, max_context=CONTEXT)
    return tmp_path / "model"


def routed_by_sentence(checkpoint: Path, positions: int) -> Path:
    """The same, as one that was trained by sentence."""
    path = checkpoint / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "manta_routing": {"level": "sentence", "positions": positions}}))
    return checkpoint


def spec_of(checkpoint: Path, **overrides: object) -> TrainingSpec:
    """A run that starts from a checkpoint; a `__` in a name stands for a dot."""
    data: dict[str, Any] = {
        "storage": "runs",
        "model": {"path": str(checkpoint)},
        "data": {"sources": [{"path": "corpus"}], "sequence_length": CONTEXT},
        "schedule": {"steps": 1000, "batch": 32},
    }
    return training_from_dict(data, {name.replace("__", "."): value for name, value in overrides.items()})


def refused(spec: TrainingSpec) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        model_of(spec)
    return {problem.field: problem.text for problem in caught.value.problems}


def test_a_checkpoint_is_trained_as_it_is(checkpoint: Path) -> None:
    spec = spec_of(checkpoint, parallel={"workers": 2, "expert_parallel": 2})
    config = model_of(spec)
    assert config == read_config(checkpoint)
    assert config.routing == BY_TOKEN
    job = job_of(spec, config, Path("store"), None)
    assert (job.start_from, job.config) == (checkpoint, config)


def test_a_checkpoint_by_token_may_be_trained_by_another_level(checkpoint: Path) -> None:
    spec = spec_of(checkpoint, model__routing="sentence", model__sentence_positions=7)
    assert model_of(spec).routing == Routing("sentence", positions=7)


def test_the_end_that_training_teaches_ends_texts(checkpoint: Path) -> None:
    """Documents end with the tokenizer's `eos_token`, whatever config.json and generation_config.json name."""
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert read_config(checkpoint).eos_token_ids == (7, 9)
    assert model_of(spec_of(checkpoint)).eos_token_ids == (1, 7, 9)


def test_a_checkpoint_that_only_says_that_it_is_tied(tmp_path: Path, seed: int) -> None:
    """Where another LM head is stored, that is trained."""
    make_checkpoint(tmp_path, seed=seed, num_experts=4, max_context=CONTEXT, tie=True)
    assert model_of(spec_of(tmp_path)).tie_embeddings
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    config = model_of(spec_of(tmp_path))
    assert not config.tie_embeddings
    model = TrainModel(config, CheckpointWeights(tmp_path, config, seed), lone_mesh(), torch.float32)
    assert torch.equal(model.head_VD, head)


def test_a_checkpoint_by_sentence_stays_what_it_is(checkpoint: Path) -> None:
    routed_by_sentence(checkpoint, 7)
    same = spec_of(checkpoint, model__routing="sentence", model__sentence_positions=7)
    assert model_of(same) == read_config(checkpoint)
    assert refused(spec_of(checkpoint)) == {
        "model.routing": "token was given; the checkpoint routes by sentence and would lose that: give that"
    }
    assert refused(spec_of(checkpoint, model__routing="sentence")) == {
        "model.sentence_positions": "32 was given; the checkpoint was trained with 7: give that"
    }


def test_what_does_not_fit_a_checkpoint_is_named(checkpoint: Path) -> None:
    routed_by_sentence(checkpoint, 7)
    assert refused(spec_of(checkpoint, data__sequence_length=CONTEXT + 1)) == {
        "data.sequence_length": "129 was given; at most 128, the checkpoint's context, is allowed",
        "model.routing": "token was given; the checkpoint routes by sentence and would lose that: give that",
    }
    ranks = {"workers": 3, "expert_parallel": 3}
    assert (
        "does not divide the model's 4 experts"
        in refused(spec_of(checkpoint, parallel=ranks))["parallel.expert_parallel"]
    )


@pytest.mark.parametrize(
    ("workers", "num_cpus", "num_cores", "expected"),
    [
        (2, "auto", 8, 1.0),
        (2, "auto", 2, 1.0),
        (4, "auto", 2, 0.5),
        (3, "auto", 2, 0.6666),  # three times 0.6667 would be more than there is
        ({"min": 1, "max": 4}, "auto", 2, 1.0),  # two of them have room
        ({"min": 4, "max": 8}, "auto", 2, 0.5),
        (4, 1.5, 2, 1.5),
    ],
)
def test_auto_is_a_core_or_an_even_share_of_those_there_are(
    workers: object, num_cpus: object, num_cores: float, expected: float
) -> None:
    spec = spec_of(Path("model"), parallel={"workers": workers, "num_cpus": num_cpus})
    assert workers_of(spec, num_cores).num_cpus == expected
    assert workers_of(spec).num_cpus == (1.0 if num_cpus == "auto" else num_cpus)


@pytest.mark.parametrize(("own_ray", "expected"), [(True, 0.5), (False, 1.0)])
def test_cores_are_shared_only_where_no_host_will_be_added(
    own_ray: bool, expected: float, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoscaler adds hosts for workers that ask for more than there is, and for no others."""
    asked: list[float] = []

    def ingest(*given: Any) -> Ingested:
        asked.append(given[-1])
        raise StoreNotWritten

    monkeypatch.setattr("training.running.ingest", ingest)
    monkeypatch.setattr("training.running.num_cores", lambda: 2.0)
    monkeypatch.setattr("training.running.num_gpus", lambda: 2.0)
    told: list[str] = []
    spec = spec_of(checkpoint, storage=str(tmp_path), parallel={"workers": 4})
    with pytest.raises(StoreNotWritten):
        run_training(spec, Watch(on_notice=told.append), own_ray)
    assert asked == [expected]
    assert told == ["Ray has 2 GPUs, and workers compute on CPUs; with parallel: {num_gpus: 1} each has one"]
