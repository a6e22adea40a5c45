"""A checkpoint that cannot be used is refused with the file, the tensor and the remedy."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint.errors import (
    CheckpointError,
    ForeignCheckpoint,
    MissingFile,
    MissingTensor,
    ShapeMismatch,
    TruncatedFile,
)
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights, read_expert_layer, read_gates
from model.config import read_config
from model.errors import ModelError
from tests.random_checkpoint import make_checkpoint
from tests.routed_checkpoint import make_task_checkpoint

NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, seed=5, with_tokenizer=False)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, seed=5, with_tokenizer=False, max_shard_size="50KB")
    return tmp_path


def read_all(directory: Path) -> None:
    config = read_config(directory)
    with CheckpointReader(directory) as reader:
        read_attention_weights(reader, config, torch.float32)
        read_gates(reader, config, torch.float32)
        read_expert_layer(reader, config, 1, 7, torch.float32)


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the single weights file after `edit` has changed its tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def refusal(directory: Path, kind: type[CheckpointError]) -> str:
    with pytest.raises(kind) as caught:
        read_all(directory)
    assert isinstance(caught.value, ModelError)
    assert caught.value.remedy
    assert str(directory) in str(caught.value)
    return str(caught.value)


def test_a_good_checkpoint_verifies(single: Path) -> None:
    CheckpointReader(single).verify()
    read_all(single)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        CheckpointReader(tmp_path / "nowhere")


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").rename(single / "consolidated.safetensors")
    message = refusal(single, MissingFile)
    assert "neither model.safetensors nor model.safetensors.index.json" in message
    assert "consolidated.safetensors" in message


def test_pickled_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(b"anything")
    message = refusal(single, ForeignCheckpoint)
    assert "pytorch_model.bin" in message
    assert "pickles are not read" in message
    assert "save_pretrained" in message


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(MissingFile, match=shard.name):
        CheckpointReader(sharded).verify()
    refusal(sharded, MissingFile)


@pytest.mark.parametrize("keep_bytes", [0, 5, 100, -1, -4096])
def test_truncated_file(single: Path, keep_bytes: int) -> None:
    path = single / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    assert "model.safetensors" in refusal(single, TruncatedFile)


def test_truncated_shard_names_the_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(TruncatedFile, match=rf"{shard.name}: the file has \d+ bytes, but its header describes"):
        CheckpointReader(sharded).verify()
    assert shard.name in refusal(sharded, TruncatedFile)


@pytest.mark.parametrize("header", [b"not json", b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"\xff\xfe{}"])
def test_damaged_header(single: Path, header: bytes) -> None:
    (single / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "header" in refusal(single, TruncatedFile)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_damaged_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(sharded, TruncatedFile)


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "folder/model.safetensors", "..", 3])
def test_index_that_leads_elsewhere(sharded: Path, file: object) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: file}}))
    assert NORM in refusal(sharded, ForeignCheckpoint)


def test_index_that_promises_what_no_file_holds(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    holder = sharded / content["weight_map"][NORM]
    tensors = {name: tensor.clone() for name, tensor in load_file(holder).items() if name != NORM}
    save_file(tensors, holder)
    with pytest.raises(MissingTensor, match=f"{NORM}, which the index says is in {holder.name}"):
        CheckpointReader(sharded).verify()
    assert holder.name in refusal(sharded, MissingTensor)


@pytest.mark.parametrize(
    "name",
    [NORM, LM_HEAD, "model.layers.1.self_attn.k_proj.weight", "model.layers.1.block_sparse_moe.experts.7.w2.weight"],
)
def test_missing_tensor(single: Path, name: str) -> None:
    change(single, lambda tensors: tensors.pop(name))
    assert name in refusal(single, MissingTensor)


def test_without_an_lm_head_it_is_no_causal_model(single: Path) -> None:
    """What was advised here once, to tie it, made noise of a classifier."""
    head = {"score.weight": torch.zeros(2, 64)}
    change(single, lambda tensors: (tensors.pop(LM_HEAD), tensors.update(head)))
    message = refusal(single, MissingTensor)
    assert "generates no text" in message
    assert "tie" not in message.replace(str(single), "")


@pytest.mark.parametrize(
    "name",
    [NORM, "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    + [f"model.layers.1.block_sparse_moe.{part}.weight" for part in ("gate", "experts.7.w1", "experts.7.w2")],
)
def test_wrong_shape(single: Path, name: str) -> None:
    change(single, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    message = refusal(single, ShapeMismatch)
    assert name in message
    assert "config.json implies" in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vocab_size", 300, "implies [300, 64]; 300 is vocab_size."),
        ("num_key_value_heads", 1, "implies [16, 64]; 16 is num_key_value_heads x head_dim."),
        ("intermediate_size", 90, "implies [90, 64]; 90 is intermediate_size."),
        ("num_local_experts", 9, "implies [9, 64]; 9 is num_local_experts."),
        ("hidden_size", 32, "; 32 is hidden_size."),
    ],
)
def test_a_wrong_shape_names_the_field(single: Path, field: str, value: int, words: str) -> None:
    fields = json.loads((single / "config.json").read_text()) | {field: value}
    (single / "config.json").write_text(json.dumps(fields))
    assert words in refusal(single, ShapeMismatch)


def test_a_wrong_vocabulary_in_the_lm_head(single: Path) -> None:
    change(single, lambda tensors: tensors.update({LM_HEAD: tensors[LM_HEAD][:-1].clone()}))
    assert "[319, 64], but config.json implies [320, 64]; 320 is vocab_size" in refusal(single, ShapeMismatch)


def test_quantized_tensor(single: Path) -> None:
    change(single, lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)}))
    message = refusal(single, ForeignCheckpoint)
    assert NORM in message
    assert "I8" in message


def test_task_gates_of_another_number_of_tasks_or_none(tmp_path: Path) -> None:
    make_task_checkpoint(tmp_path, ("one", "other"), seed=5, with_tokenizer=False)
    name = "model.layers.1.block_sparse_moe.task_gate.weight"
    change(tmp_path, lambda tensors: tensors.update({name: tensors[name][:1].clone()}))
    assert name in refusal(tmp_path, ShapeMismatch)
    change(tmp_path, lambda tensors: tensors.pop(name))
    assert name in refusal(tmp_path, MissingTensor)


def test_another_architecture(single: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "block_sparse_moe" in name]:
            tensors[name.replace("block_sparse_moe", "feed_forward")] = tensors.pop(name)

    change(single, rename)
    assert "Mixtral gate" in refusal(single, ForeignCheckpoint)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ShapeMismatch("file", "tensor a has shape [1].", "Mend it.")))  # noqa: S301  our own bytes
    assert type(error) is ShapeMismatch
    assert str(error) == "file: tensor a has shape [1]. Mend it."
