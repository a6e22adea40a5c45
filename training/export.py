"""From a run's checkpoint to a Hugging Face one, which `manta serve` and transformers load. One process, no ranks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from checkpoint.experts import ExpertNaming, gate_name, task_gate_name
from checkpoint.writer import write_checkpoint
from model.config import MixtralConfig
from model.dtypes import TORCH_DTYPES
from model.routing import Routing
from training.progress import (
    CHECKPOINT_FOLDER,
    Complete,
    complete_checkpoints,
    newest_checkpoint,
    read_progress,
    step_of,
)

TOKENIZER_FOLDER = "tokenizer"  # in a run's folder

LAYER_NAMES = {
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
    "attention.output": "self_attn.o_proj.weight",
}
WHOLE_NAMES = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}


def export(complete: Complete, out: Path, dtype_name: str, tokenizer: Path | None) -> None:
    """Writes a checkpoint's model.

    Args:
        dtype_name: What the weights are stored in: `float32` or `bfloat16`.
        tokenizer: Where the tokenizer's files are; None: none are copied.

    Raises:
        FileExistsError: `out` holds something.
        OSError: It cannot be written.
    """
    dtype, config = TORCH_DTYPES[dtype_name], config_of(complete)
    tensors = ((name, tensor.to(dtype)) for name, tensor in exported(complete, config))
    write_checkpoint(out, config, tensors, dtype_name, tokenizer)


def find_checkpoint(run: Path, step: int | None) -> Complete:
    """Returns a run's checkpoint: that of a step, or the newest.

    Raises:
        ValueError: There is none such; says which there are.
        CheckpointError: It is damaged.
    """
    folder = run / CHECKPOINT_FOLDER
    newest = newest_checkpoint(folder) if step is None else None
    if newest is not None:
        return newest
    steps = {step_of(directory): directory for directory in complete_checkpoints(folder)}
    if not steps:
        raise ValueError(f"{run} holds no complete checkpoint; give the folder of a run: STORAGE/NAME of its file")
    if step not in steps:
        raise ValueError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, sorted(steps)))}")
    return read_progress(steps[step])


def config_of(complete: Complete) -> MixtralConfig:
    """Returns the model's sizes, as the checkpoint has them."""
    said: dict[str, Any] = complete.config
    routing: dict[str, Any] = said["routing"]
    whole: dict[str, Any] = {
        **said,
        "eos_token_ids": tuple(said["eos_token_ids"]),
        "routing": Routing(routing["level"], routing["positions"], tuple(routing["tasks"])),
    }
    return MixtralConfig(**whole)


def exported(complete: Complete, config: MixtralConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's tensors by their names in a Hugging Face checkpoint; reads one of training's at a time."""
    reader = FileSystemReader(complete.directory)
    stored = reader.read_metadata().state_dict_metadata
    for name in sorted(name.removeprefix("parameters.") for name in stored if name.startswith("parameters.")):
        yield from _renamed(name, _read(complete.directory, f"parameters.{name}", stored), config)


def _read(directory: Path, name: str, stored: Mapping[str, object]) -> Tensor:
    found = stored[name]
    assert isinstance(found, TensorStorageMetadata), f"{name} is no tensor"
    state = {name: torch.empty(found.size, dtype=found.properties.dtype)}
    load_tensors(state, storage_reader=FileSystemReader(directory), no_dist=True)
    return state[name]


def _renamed(name: str, value: Tensor, config: MixtralConfig) -> Iterator[tuple[str, Tensor]]:
    if name in WHOLE_NAMES:
        yield WHOLE_NAMES[name], value
        return
    _, layer, rest = name.split(".", 2)
    prefix = f"model.layers.{layer}"
    if rest in LAYER_NAMES:
        yield f"{prefix}.{LAYER_NAMES[rest]}", value
    elif rest == "moe.gate":
        name_of = task_gate_name if config.routing.level == "task" else gate_name
        yield name_of(ExpertNaming.PER_EXPERT, int(layer)), value
    elif rest == "attention.qkv":
        rows = [config.query_size, config.key_value_size, config.key_value_size]
        for which, part in zip("qkv", value.split(rows), strict=True):
            yield f"{prefix}.self_attn.{which}_proj.weight", part
    elif rest == "moe.gate_up":
        for expert, both in enumerate(value):
            gate, up = both.chunk(2)
            yield f"{prefix}.block_sparse_moe.experts.{expert}.w1.weight", gate
            yield f"{prefix}.block_sparse_moe.experts.{expert}.w3.weight", up
    elif rest == "moe.down":
        for expert, down in enumerate(value):
            yield f"{prefix}.block_sparse_moe.experts.{expert}.w2.weight", down
    else:
        raise ValueError(f"{name} is no parameter that a Mixtral has")
