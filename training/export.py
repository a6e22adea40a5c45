"""From a run's checkpoint to a Hugging Face one, which `manta serve` and transformers load. One process, no ranks."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from checkpoint.experts import ExpertNaming, gate_name, task_gate_name
from checkpoint.writer import write_checkpoint
from model.config import MixtralConfig
from model.dtypes import TORCH_DTYPES
from training.manifest import Tensors
from training.plain_files import NotPlain, parse_plain
from training.progress import (
    CHECKPOINT_FOLDER,
    PROGRESS_FILE,
    Complete,
    DamagedCheckpoint,
    complete_checkpoints,
    newest_checkpoint,
    read_progress,
    step_of,
)
from training.tensor_files import DamagedFile, check_files, read_tensor

TOKENIZER_FOLDER = "tokenizer"  # in a run's folder

LAYER_NAMES = {
    "input_norm": "input_layernorm.weight",
    "post_norm": "post_attention_layernorm.weight",
    "attention.output": "self_attn.o_proj.weight",
}
PARAMETERS = "parameters."  # what their names begin with in a run's checkpoint
WHOLE_NAMES = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}

_CONFIG = TypeAdapter(MixtralConfig)


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
    """Returns the model's sizes, as the checkpoint has them.

    Raises:
        DamagedCheckpoint: They are not what a model's are.
    """
    try:
        return parse_plain(json.dumps(complete.config), _CONFIG, PROGRESS_FILE)
    except NotPlain as error:
        raise DamagedCheckpoint(f"{complete.directory} is of no model: {error}") from error


def exported(complete: Complete, config: MixtralConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's tensors by their names in a Hugging Face checkpoint; reads one of training's at a time.

    Raises:
        DamagedCheckpoint: Its files are not what it says, or not of a model of these sizes.
        OSError: A file cannot be read.
    """
    stored = {name: tensor for name, tensor in complete.tensors.items() if name.startswith(PARAMETERS)}
    try:
        _check_shapes(complete, stored, config)
        check_files(complete.directory, stored)  # before memory is made, and hours of writing
        for name in sorted(stored):
            yield from _renamed(
                name.removeprefix(PARAMETERS), read_tensor(complete.directory, name, stored[name]), config
            )
    except DamagedFile as error:
        raise DamagedCheckpoint(f"{complete.directory} cannot be read: {error}") from error


def _check_shapes(complete: Complete, stored: Tensors, config: MixtralConfig) -> None:
    found = {name.removeprefix(PARAMETERS): tensor.shape for name, tensor in stored.items()}
    per_layer = len(_layer_shapes(config))
    if len(found) != per_layer * config.num_layers + len(_whole_shapes(config)):  # before a name is made for each
        what = f"{len(found)} parameters, and a model of {config.num_layers} layers has another number"
        raise DamagedCheckpoint(f"{complete.directory} has {what}")
    wanted = _whole_shapes(config) | {
        f"layers.{layer}.{name}": shape
        for layer in range(config.num_layers)
        for name, shape in _layer_shapes(config).items()
    }
    for name, shape in wanted.items():
        if found.get(name) != shape:
            what = f"{found.get(name)} for {name}, and its sizes mean {shape}"
            raise DamagedCheckpoint(f"{complete.directory} has {what}")


def _whole_shapes(config: MixtralConfig) -> dict[str, tuple[int, ...]]:
    table = (config.vocab_size, config.hidden_size)
    head = {} if config.tie_embeddings else {"lm_head": table}
    return {"embedding": table, "final_norm": (config.hidden_size,)} | head


def _layer_shapes(config: MixtralConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn, experts = config.hidden_size, config.ffn_size, config.num_experts
    by_task = config.routing.level == "task"
    return {
        "input_norm": (hidden,),
        "post_norm": (hidden,),
        "attention.qkv": (config.query_size + 2 * config.key_value_size, hidden),
        "attention.output": (hidden, config.query_size),
        "moe.gate": (len(config.routing.tasks), experts) if by_task else (experts, hidden),
        "moe.gate_up": (experts, 2 * ffn, hidden),
        "moe.down": (experts, hidden, ffn),
    }


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
