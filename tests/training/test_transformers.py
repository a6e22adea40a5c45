"""Against transformers' own Mixtral, in float32: losses, every gradient, and what is exported."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MixtralForCausalLM

from checkpoint.experts import ExpertNaming
from model.config import MixtralConfig, read_config
from model.rope_scaling import RopeScaling
from model.routing import Routing
from tests.random_checkpoint import make_checkpoint
from training.checkpoints import Saver, check_fits
from training.export import config_of, export
from training.losses import LossSettings, losses_of
from training.mesh import lone_mesh
from training.model import Batch, TrainModel
from training.optimizer import make_optimizer
from training.progress import Complete, OtherRun, Progress, newest_checkpoint
from training.spec_schema import OptimizerSpec
from training.starting import CheckpointWeights
from training.step import StepSettings, train_step

CLOSE = 2e-5


def batch_of(config: MixtralConfig, seed: int, num_sequences: int = 2, length: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (num_sequences, length + 1), generator=generator)
    positions = torch.arange(length).repeat(num_sequences, 1)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), positions, positions[:, 0])


def newest_in(folder: Path) -> Complete:
    found = newest_checkpoint(folder / "checkpoints")
    assert found is not None
    return found


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("fused_names", [False, True])
def test_losses_and_gradients_are_those_of_transformers(
    fused_names: bool, window: int | None, tie: bool, tmp_path: Path, seed: int
) -> None:
    theirs = make_checkpoint(tmp_path / "model", seed=seed, window=window, tie=tie, fused_names=fused_names)
    check_losses_and_gradients(theirs, tmp_path, seed)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_so_are_those_of_scaled_rotary_embeddings(kind: str, tmp_path: Path, seed: int) -> None:
    theirs = make_scaled(tmp_path / "model", kind, seed)
    check_losses_and_gradients(theirs, tmp_path, seed)


def make_scaled(directory: Path, kind: str, seed: int) -> MixtralForCausalLM:
    """A model whose context was once 8 positions."""
    rope: dict[str, object] = {"rope_type": kind, "rope_theta": 50.0, "factor": 4.0}
    if kind in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = 8
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return make_checkpoint(directory, seed=seed, head_dim=16, max_context=32, rope=rope)


def check_losses_and_gradients(theirs: MixtralForCausalLM, tmp_path: Path, seed: int) -> None:
    config = read_config(tmp_path / "model")
    ours = TrainModel(config, CheckpointWeights(tmp_path / "model", config, seed), lone_mesh(), torch.float32)
    batch = batch_of(config, seed)
    losses = losses_of(ours(batch), batch.ids_BL.numel(), config.top_k, LossSettings(balance=0), lone_mesh())
    losses.share.backward()

    logits = theirs(input_ids=batch.ids_BL).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BL.flatten())
    loss.backward()
    assert losses.nats == pytest.approx(float(loss.detach()), rel=CLOSE)
    expected = by_our_names(theirs, config)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert close(parameter.grad, expected[name]), name


def by_our_names(model: MixtralForCausalLM, config: MixtralConfig) -> dict[str, Tensor]:
    """Their gradients by our names, whichever way their version holds the experts."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    mapped = {"embedding": found["model.embed_tokens.weight"], "final_norm": found["model.norm.weight"]}
    if not config.tie_embeddings:
        mapped["lm_head"] = found["lm_head.weight"]
    for layer in range(config.num_layers):
        there, here = f"model.layers.{layer}.", f"layers.{layer}."
        mapped[here + "input_norm"] = found[there + "input_layernorm.weight"]
        mapped[here + "post_norm"] = found[there + "post_attention_layernorm.weight"]
        parts = [found[f"{there}self_attn.{which}_proj.weight"] for which in "qkv"]
        mapped[here + "attention.qkv"] = torch.cat(parts)
        mapped[here + "attention.output"] = found[there + "self_attn.o_proj.weight"]
        block = there + ExpertNaming.FUSED.value
        mapped[here + "moe.gate"] = found[f"{block}.gate.weight"]
        mapped[here + "moe.gate_up"] = found[f"{block}.experts.gate_up_proj"]
        mapped[here + "moe.down"] = found[f"{block}.experts.down_proj"]
    return mapped


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_is_what_was_trained(dtype: str, tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path / "model", seed=seed, window=16)
    config = read_config(tmp_path / "model")
    model = TrainModel(config, CheckpointWeights(tmp_path / "model", config, seed), lone_mesh(), torch.float32)
    optimizer = make_optimizer(model.parameters(), OptimizerSpec())
    for step in range(2):
        train_step(model, optimizer, batch_of(config, seed + step), step, 40, StepSettings(), lone_mesh())
    saver = Saver(tmp_path / "checkpoints", 1, 60, lone_mesh())
    saver.save(model, optimizer, Progress(2, 4, "store"))
    saver.finish()
    found = newest_in(tmp_path)
    assert config_of(found) == config
    export(found, tmp_path / "out", dtype, tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out" / "config.json").stat().st_mode}, "whoever can read one file can read all"

    theirs = MixtralForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        if dtype == "bfloat16":
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16().float())
        batch = batch_of(config, seed + 9)
        ours = F.linear(model.rows(batch)[0], model.head_VD).view(2, 20, -1)
        assert close(ours, theirs(input_ids=batch.ids_BL).logits)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    again = read_config(tmp_path / "out")
    assert (again.window, again.dtype, again.rope_theta) == (config.window, dtype, config.rope_theta)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_scaled_rotary_embedding_is_exported(kind: str, tmp_path: Path, seed: int) -> None:
    theirs = make_scaled(tmp_path / "model", kind, seed)
    config = read_config(tmp_path / "model")
    model = TrainModel(config, CheckpointWeights(tmp_path / "model", config, seed), lone_mesh(), torch.float32)
    saver = Saver(tmp_path / "checkpoints", 1, 60, lone_mesh())
    saver.save(model, make_optimizer(model.parameters(), OptimizerSpec()), Progress(0, 0, "store"))
    saver.finish()
    export(newest_in(tmp_path), tmp_path / "out", "float32", None)
    assert read_config(tmp_path / "out") == config
    again = MixtralForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = batch_of(config, seed)
    with torch.no_grad():
        logits = theirs(input_ids=batch.ids_BL).logits
        assert close(F.linear(model.rows(batch)[0], model.head_VD).view(2, 20, -1), logits)
        assert close(again(input_ids=batch.ids_BL).logits, logits)


def test_a_run_from_before_scaling_was_known_goes_on(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path / "model", seed=seed)
    config = read_config(tmp_path / "model")
    said = json.loads(json.dumps(asdict(config)))
    del said["rope_scaling"]
    old = Complete(tmp_path, Progress(1, 2, "store"), said)
    assert config_of(old) == config
    check_fits(old, replace(config, eos_token_ids=(7,), dtype="bfloat16"))
    with pytest.raises(OtherRun, match="rope_scaling.*'kind': 'default'.*'kind': 'linear'"):
        check_fits(old, replace(config, rope_scaling=RopeScaling("linear", 2.0)))


@pytest.mark.parametrize("routing", [Routing("sentence", 4), Routing("task", 0, ("one", "two"))], ids=str)
def test_other_levels_are_exported_and_read_again(routing: Routing, tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path / "model", seed=seed)
    config = replace(read_config(tmp_path / "model"), routing=routing)
    model = TrainModel(config, CheckpointWeights(tmp_path / "model", config, seed), lone_mesh(), torch.float32)
    saver = Saver(tmp_path / "checkpoints", 1, 60, lone_mesh())
    saver.save(model, make_optimizer(model.parameters(), OptimizerSpec()), Progress(0, 0, "store"))
    saver.finish()
    export(newest_in(tmp_path), tmp_path / "out", "float32", None)
    assert read_config(tmp_path / "out") == replace(config, dtype="float32")
    again = TrainModel(config, CheckpointWeights(tmp_path / "out", config, seed + 1), lone_mesh(), torch.float32)
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_tasks_keep_their_gates_whatever_their_order(tmp_path: Path, seed: int) -> None:
    first = make_task_model(tmp_path / "model", seed, ("python", "prose"))
    config = replace(first, routing=Routing("task", 0, ("letters", "prose", "python")))
    weights = CheckpointWeights(tmp_path / "model", config, seed)
    before = CheckpointWeights(tmp_path / "model", first, seed)
    for layer in range(config.num_layers):
        table, known = weights.gate(layer), before.gate(layer)
        assert torch.equal(table[1:], known[[1, 0]])
        assert table.shape[0] == 3


def make_task_model(directory: Path, seed: int, tasks: tuple[str, ...]) -> MixtralConfig:
    make_checkpoint(directory / "plain", seed=seed)
    config = replace(read_config(directory / "plain"), routing=Routing("task", 0, tasks))
    model = TrainModel(config, CheckpointWeights(directory / "plain", config, seed), lone_mesh(), torch.float32)
    saver = Saver(directory / "checkpoints", 1, 60, lone_mesh())
    saver.save(model, make_optimizer(model.parameters(), OptimizerSpec()), Progress(0, 0, "store"))
    saver.finish()
    export(newest_in(directory), directory / "out", "float32", None)
    for path in (directory / "out").iterdir():
        path.rename(directory / path.name)
    return config
