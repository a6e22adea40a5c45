"""Checkpoints that are not as save_pretrained writes them, and that transformers loads: Manta loads them alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint.reader import CheckpointReader
from checkpoint.weights import as_tied, read_attention_weights
from model.config import read_config
from tests.checkpoint.small import (
    EMBEDDING,
    INDEX,
    LM_HEAD,
    NORM,
    WEIGHTS,
    Tensors,
    check_like_transformers,
    edit_json,
    edit_weights,
    make_small,
    read_all,
)


def test_a_tied_model_that_holds_another_lm_head_is_not_tied(tmp_path: Path) -> None:
    make_small(tmp_path, tie=True)
    head = torch.randn(320, 32, generator=torch.Generator().manual_seed(1))
    edit_weights(tmp_path, lambda tensors: tensors.update({LM_HEAD: head}))
    theirs = check_like_transformers(tmp_path)
    config = read_config(tmp_path)
    with CheckpointReader(tmp_path) as reader:
        weights = read_attention_weights(reader, config, torch.float32)
        assert as_tied(reader, config).tie_embeddings is False
    assert torch.equal(weights.lm_head_VD, head)
    assert torch.equal(weights.lm_head_VD, theirs.lm_head.weight)


def test_a_tied_model_that_holds_its_embedding_twice_stays_tied(tmp_path: Path) -> None:
    make_small(tmp_path, tie=True)
    edit_weights(tmp_path, lambda tensors: tensors.update({LM_HEAD: tensors[EMBEDDING].clone()}))
    check_like_transformers(tmp_path)
    config = read_config(tmp_path)
    with CheckpointReader(tmp_path) as reader:
        assert as_tied(reader, config) == config
        weights = read_attention_weights(reader, config, torch.float32)
    assert weights.lm_head_VD is weights.embedding_VD


def test_two_number_types_of_the_same_weights_are_the_same(tmp_path: Path) -> None:
    make_small(tmp_path, tie=True, dtype="bfloat16")
    edit_weights(tmp_path, lambda tensors: tensors.update({LM_HEAD: tensors[EMBEDDING].float()}))
    config = read_config(tmp_path)
    assert config.dtype == "bfloat16"
    with CheckpointReader(tmp_path) as reader:
        assert as_tied(reader, config).tie_embeddings
    edit_weights(tmp_path, lambda tensors: tensors[LM_HEAD].mul_(1.5))
    with CheckpointReader(tmp_path) as reader:
        assert not as_tied(reader, config).tie_embeddings


def test_a_tied_model_that_holds_the_lm_head_alone(tmp_path: Path) -> None:
    make_small(tmp_path, tie=True)
    edit_weights(tmp_path, lambda tensors: tensors.update({LM_HEAD: tensors.pop(EMBEDDING)}))
    check_like_transformers(tmp_path)


def sharded(directory: Path) -> dict[str, str]:
    """Cuts the weights in shards; returns the index's map."""
    make_small(directory, max_shard_size="20KB")
    weight_map: dict[str, str] = json.loads((directory / INDEX).read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    return weight_map


@pytest.mark.parametrize("lost", [NORM, "model.layers.1.block_sparse_moe.experts.0.w2.weight"])
def test_an_index_that_lacks_a_tensor_which_a_shard_holds(tmp_path: Path, lost: str) -> None:
    weight_map = sharded(tmp_path)
    file = weight_map.pop(lost)
    assert file in weight_map.values(), "the shard is still listed"
    edit_json(tmp_path / INDEX, weight_map=weight_map)
    check_like_transformers(tmp_path)
    read_all(tmp_path)
    CheckpointReader(tmp_path).verify()


def test_an_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    weight_map[NORM] = next(file for file in weight_map.values() if file != weight_map[NORM])
    edit_json(tmp_path / INDEX, weight_map=weight_map)
    check_like_transformers(tmp_path)
    CheckpointReader(tmp_path).verify()


def renamed(tensors: Tensors, old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize("fused_names", [False, True])
@pytest.mark.parametrize("only", ["", ".experts."])
def test_the_other_block_name(tmp_path: Path, fused_names: bool, only: str) -> None:
    """`mlp.experts.0.w1.weight`, `block_sparse_moe.experts.gate_up_proj`; for the experts alone, or the gate too."""
    make_small(tmp_path, fused_names=fused_names)
    block, other = ("mlp", "block_sparse_moe") if fused_names else ("block_sparse_moe", "mlp")
    edit_weights(tmp_path, lambda tensors: renamed(tensors, f".{block}{only or '.'}", f".{other}{only or '.'}"))
    check_like_transformers(tmp_path)
    read_all(tmp_path)


def test_the_body_alone_of_a_tied_model(tmp_path: Path) -> None:
    """MixtralModel's own save_pretrained leaves `model.` out."""
    model = make_small(tmp_path / "whole", tie=True)
    model.model.save_pretrained(tmp_path / "body")
    names = load_file(tmp_path / "body" / WEIGHTS)
    assert "embed_tokens.weight" in names
    check_like_transformers(tmp_path / "body")
    read_all(tmp_path / "body")


@pytest.mark.parametrize("fused_names", [False, True])
@pytest.mark.parametrize("but_the_head", [False, True])
def test_a_module_that_held_the_model(tmp_path: Path, fused_names: bool, but_the_head: bool) -> None:
    """`model.model.layers.0...`, and `model.lm_head.weight` or not."""
    make_small(tmp_path, fused_names=fused_names)
    taken = "model." if but_the_head else ""
    edit_weights(
        tmp_path,
        lambda tensors: [
            tensors.update({f"model.{name}": tensors.pop(name)}) for name in list(tensors) if name.startswith(taken)
        ],
    )
    check_like_transformers(tmp_path)


def test_tensors_that_nobody_needs(tmp_path: Path) -> None:
    make_small(tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "counts": torch.ones(3, dtype=torch.int64)}
    edit_weights(tmp_path, lambda tensors: tensors.update(extra))
    check_like_transformers(tmp_path)


@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16", "float64"])
@pytest.mark.parametrize("cut", [False, True])
def test_weights_say_their_type_where_config_does_not(tmp_path: Path, stored: str, cut: bool) -> None:
    make_small(tmp_path, max_shard_size="20KB" if cut else None)
    for path in tmp_path.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(path).items()}
        save_file(tensors, path)
    edit_json(tmp_path / "config.json", dtype=..., torch_dtype=...)
    expected = "bfloat16" if stored == "bfloat16" else "float32"
    assert read_config(tmp_path).dtype == expected
    edit_json(tmp_path / "config.json", dtype="bfloat16")
    assert read_config(tmp_path).dtype == "bfloat16"


def test_float16_weights_are_computed_exactly(tmp_path: Path) -> None:
    """Those of transformers in float32, not what bfloat16 would make of them."""
    make_small(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({name: each.half() for name, each in tensors.items()}))
    edit_json(tmp_path / "config.json", dtype="float16")
    check_like_transformers(tmp_path)
    config = read_config(tmp_path)
    assert config.dtype == "float32"
    with CheckpointReader(tmp_path) as reader:
        weights = read_attention_weights(reader, config, torch.float32)
    assert torch.equal(weights.embedding_VD, load_file(tmp_path / WEIGHTS)[EMBEDDING].float())
