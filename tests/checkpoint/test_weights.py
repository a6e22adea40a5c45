"""Each role's weights equal the model's own, in every naming and sharding, and nothing else is read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

from checkpoint.reader import CheckpointReader, Index
from checkpoint.weights import (
    AttentionWeights,
    ExpertLayerWeights,
    read_attention_weights,
    read_expert_layer,
    read_gates,
)
from model.config import MixtralConfig, read_config
from tests.random_checkpoint import make_checkpoint
from tests.routed_checkpoint import make_task_checkpoint

SEED = 11


class SpyReader(CheckpointReader):
    """Remembers what is read."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.parts: list[tuple[str, Index]] = []

    def read_part(self, name: str, expected_shape: tuple[int, ...], index: Index) -> torch.Tensor:
        self.parts.append((name, index))
        return super().read_part(name, expected_shape, index)

    @property
    def names_read(self) -> set[str]:
        return {name for name, _ in self.parts}


LAYOUTS: dict[str, tuple[bool, str | None]] = {
    "single": (False, None),
    "sharded": (False, "50KB"),
    "fused": (True, None),
    "fused sharded": (True, "50KB"),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MixtralForCausalLM]:
    fused, shard_size = LAYOUTS[request.param]
    directory = tmp_path_factory.mktemp("checkpoint")
    model = make_checkpoint(
        directory, seed=SEED, fused_names=fused, max_shard_size=shard_size, num_experts=5, head_dim=8, top_k=3
    )
    assert (directory / "model.safetensors").exists() == (shard_size is None)
    return directory, model


def equal(given: torch.Tensor, expected: torch.Tensor) -> None:
    assert given.is_contiguous()
    torch.testing.assert_close(given, expected.detach(), rtol=0, atol=0)


def test_attention_weights(saved: tuple[Path, MixtralForCausalLM]) -> None:
    directory, model = saved
    calls: list[tuple[int, int]] = []
    reader = SpyReader(directory)
    weights = read_attention_weights(reader, read_config(directory), torch.float32, lambda *call: calls.append(call))
    equal(weights.embedding_VD, model.model.embed_tokens.weight)
    equal(weights.final_norm_D, model.model.norm.weight)
    equal(weights.lm_head_VD, model.lm_head.weight)
    layers: Any = model.model.layers
    for ours, theirs in zip(weights.layers, layers, strict=True):
        attention = theirs.self_attn
        equal(ours.qkv_ND, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
        equal(ours.output_DM, attention.o_proj.weight)
        equal(ours.input_norm_D, theirs.input_layernorm.weight)
        equal(ours.post_norm_D, theirs.post_attention_layernorm.weight)
    assert calls == [(1, 2), (2, 2)]
    assert len(reader.parts) == len(reader.names_read) == 3 + 6 * 2
    assert not any(".mlp." in name or "moe" in name for name in reader.names_read)


def test_gates(saved: tuple[Path, MixtralForCausalLM]) -> None:
    directory, model = saved
    reader = SpyReader(directory)
    gates = read_gates(reader, read_config(directory), torch.float32)
    layers: Any = model.model.layers
    for ours, theirs in zip(gates, layers, strict=True):
        equal(ours, theirs.mlp.gate.weight)
    assert len(reader.names_read) == 2
    assert all(name.endswith(".gate.weight") for name in reader.names_read)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("with_token_gates", [False, True])
def test_task_gates(tmp_path: Path, fused: bool, with_token_gates: bool) -> None:
    """They need no other gates beside them, not even to tell how the checkpoint names its experts."""
    model = make_task_checkpoint(tmp_path, ("one", "other"), with_token_gates, seed=SEED, fused_names=fused)
    reader = SpyReader(tmp_path)
    gates = read_gates(reader, read_config(tmp_path), torch.float32)
    for ours, theirs in zip(gates, model.tables, strict=True):
        equal(ours, theirs)
    assert len(reader.names_read) == 2
    assert all(name.endswith(".task_gate.weight") for name in reader.names_read)
    read_expert_layer(reader, read_config(tmp_path), 1, 2, torch.float32)


def expert_of(model: MixtralForCausalLM, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    layers: Any = model.model.layers
    experts = layers[layer].mlp.experts
    return experts.gate_up_proj[expert].detach(), experts.down_proj[expert].detach()


def test_every_expert(saved: tuple[Path, MixtralForCausalLM]) -> None:
    directory, model = saved
    config = read_config(directory)
    with CheckpointReader(directory) as reader:
        for layer in range(config.num_layers):
            for expert in range(config.num_experts):
                ours = read_expert_layer(reader, config, layer, expert, torch.float32)
                gate_up_2FD, down_DF = expert_of(model, layer, expert)
                equal(ours.gate_up_2FD, gate_up_2FD)
                equal(ours.down_DF, down_DF)


@pytest.mark.parametrize("columns", [slice(0, 24), slice(24, 48), slice(95, 96), slice(48, None), slice(0, 96)])
def test_columns_are_slices_of_the_whole(saved: tuple[Path, MixtralForCausalLM], columns: slice) -> None:
    directory, model = saved
    reader = SpyReader(directory)
    ours = read_expert_layer(reader, read_config(directory), 1, 4, torch.float32, columns)
    gate_up_2FD, down_DF = expert_of(model, 1, 4)
    gate_FD, up_FD = gate_up_2FD.chunk(2)
    equal(ours.gate_up_2FD, torch.cat([gate_FD[columns], up_FD[columns]]))
    equal(ours.down_DF, down_DF[:, columns])
    assert all("layers.1." in name and "experts" in name for name in reader.names_read)
    assert len(reader.parts) == 3
    assert all(index for _, index in reader.parts)


def test_an_expert_opens_only_the_files_that_hold_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=SEED, max_shard_size="30KB")
    needed = {f"model.layers.0.block_sparse_moe.experts.2.w{part}.weight" for part in (1, 2, 3)}
    reader = CheckpointReader(tmp_path)
    files = {reader._files[name] for name in needed}  # pyright: ignore[reportPrivateUsage]
    for file in tmp_path.glob("*.safetensors"):
        if file.name not in files:
            file.unlink()
    assert len(files) < 4
    read_expert_layer(reader, read_config(tmp_path), 0, 2, torch.float32)


@pytest.mark.parametrize("fused", [False, True])
def test_tied_embeddings_are_one_tensor(tmp_path: Path, fused: bool) -> None:
    model = make_checkpoint(tmp_path, seed=SEED, tie=True, fused_names=fused)
    weights = read_attention_weights(CheckpointReader(tmp_path), read_config(tmp_path), torch.float32)
    assert weights.lm_head_VD is weights.embedding_VD
    equal(weights.embedding_VD, model.lm_head.weight)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_dtypes(tmp_path: Path, stored: str, wanted: torch.dtype) -> None:
    model = make_checkpoint(tmp_path, seed=SEED, dtype=stored)
    config = read_config(tmp_path)
    assert config.dtype == stored
    everything = read_everything(tmp_path, config, wanted)
    assert {tensor.dtype for tensor in tensors_of(*everything)} == {wanted}
    equal(everything[0].embedding_VD, model.model.embed_tokens.weight.to(wanted))
    equal(everything[1].gate_up_2FD, expert_of(model, 0, 0)[0].to(wanted))


def test_results_own_their_memory(tmp_path: Path) -> None:
    """Writing into a result must not reach the file, and the file may go away."""
    make_checkpoint(tmp_path, seed=SEED)
    config = read_config(tmp_path)
    before = [tensor.clone() for tensor in tensors_of(*read_everything(tmp_path, config, torch.float32))]
    for tensor in tensors_of(*read_everything(tmp_path, config, torch.float32)):
        tensor.fill_(7)
    after = tensors_of(*read_everything(tmp_path, config, torch.float32))
    (tmp_path / "model.safetensors").unlink()
    for old, new in zip(before, after, strict=True):
        equal(new, old)


def read_everything(
    directory: Path, config: MixtralConfig, dtype: torch.dtype
) -> tuple[AttentionWeights, ExpertLayerWeights, list[torch.Tensor]]:
    with CheckpointReader(directory) as reader:
        return (
            read_attention_weights(reader, config, dtype),
            read_expert_layer(reader, config, 0, 0, dtype),
            read_gates(reader, config, dtype),
        )


def tensors_of(
    attention: AttentionWeights, expert: ExpertLayerWeights, gates: list[torch.Tensor]
) -> list[torch.Tensor]:
    layers = [tensor for layer in attention.layers for tensor in vars(layer).values()]
    ends = [attention.embedding_VD, attention.final_norm_D, attention.lm_head_VD]
    return [*ends, *layers, expert.gate_up_2FD, expert.down_DF, *gates]
