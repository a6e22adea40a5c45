"""`manta extract`: one task's part of a model that routes by task, as a plain Mixtral. One process, no Ray.

In every layer a task uses the same K experts with the same weights g. Only these K are kept. Their gate is zeros, so
that whoever loads the model gives each of them 1/K, and each w2 is multiplied by K * g: what remains is g.

D model dim, F expert hidden dim, V vocabulary, K experts per row, S tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from checkpoint.experts import ExpertNaming, TensorPart, detect_naming, expert_parts, gate_name, read_part
from checkpoint.reader import CheckpointReader
from checkpoint.weights import (
    EMBEDDING,
    LM_HEAD,
    as_tied,
    attention_parts,
    embedding_part,
    final_norm_part,
    lm_head_part,
    read_gates,
)
from checkpoint.writer import write_checkpoint
from model.config import CONFIG_FILE, MixtralConfig, read_config
from model.dtypes import torch_dtype
from model.errors import ConfigError
from model.routing import BY_TOKEN, FIELD
from router.gating import task_choices


@dataclass(frozen=True)
class Choice:
    """What a task does in one layer: `experts`, best first, and the `weights` of their outputs; K each."""

    experts: tuple[int, ...]
    weights: tuple[float, ...]


def extract(model: Path, out: Path, task: str, dtype_name: str = "auto") -> tuple[MixtralConfig, MixtralConfig]:
    """Writes the plain Mixtral that computes what a model computes for one task; returns both models' sizes.

    The logits are the full model's but for rounding: each number of w2 is rounded once more, to the dtype, unless K * g
    is a power of two (with K = 1 it is 1, and no bit changes). In float32 that is 1e-7 of the number. In bfloat16 it is
    up to 0.4 %, as every number of such a checkpoint was rounded once; a full model that computes in bfloat16 rounds g
    instead.

    Holds no more in memory than one file that is written (`checkpoint.writer.MAX_FILE_BYTES`).

    Args:
        model: A Hugging Face directory whose model routes by task.
        out: The directory to write; new, or empty.
        task: The task's name, as config.json has it.
        dtype_name: What the weights are stored in: `float32`, `bfloat16`, or `auto`, which is the model's own (float32
            for float16, as when it is served). Which experts are kept, and g, do not depend on it.

    Raises:
        ConfigError: config.json cannot be used, or the model routes by something else.
        ValueError: The model has no such task; says which it has.
        CheckpointError: The weights cannot be read; names the file and the tensor.
        FileExistsError: `out` holds something.
        OSError: It cannot be written.
    """
    config = read_config(model)
    number = _task_number(model, config, task)
    stored_as = config.dtype if dtype_name == "auto" else dtype_name
    with CheckpointReader(model) as reader:
        reader.verify()  # before hours of writing
        config = as_tied(reader, config)
        small = replace(config, num_experts=config.top_k, routing=BY_TOKEN)
        write_checkpoint(out, small, extracted(reader, config, number, torch_dtype(stored_as)), stored_as, model)
    return config, small


def extracted(
    reader: CheckpointReader, config: MixtralConfig, task: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a task's own model by their names, one at a time, each in memory of its own.

    Args:
        config: The full model's.
        task: The task's number.

    Raises:
        CheckpointError: They cannot be read; names the file and the tensor.
    """
    naming = detect_naming(reader)
    choices = _choices(reader, config, task)
    yield EMBEDDING, _whole(reader, embedding_part(reader, config), dtype)
    for layer, choice in enumerate(choices):
        for part in attention_parts(config, layer).values():
            yield part.name, _whole(reader, part, dtype)
        zeros_KD = torch.zeros(config.top_k, config.hidden_size, dtype=dtype)
        yield gate_name(ExpertNaming.PER_EXPERT, layer), zeros_KD
        yield from _experts(reader, naming, config, layer, choice, dtype)
    norm = final_norm_part(config)
    yield norm.name, _whole(reader, norm, dtype)
    if not config.tie_embeddings:
        yield LM_HEAD, _whole(reader, lm_head_part(reader, config), dtype)


def _task_number(model: Path, config: MixtralConfig, task: str) -> int:
    level, tasks = config.routing.level, config.routing.tasks
    if level != "task":
        raise ConfigError(
            str(model / CONFIG_FILE),
            f"the model routes by {level}, so that no task has experts of its own.",
            f'Give a model that routes by task: one whose {CONFIG_FILE} has {FIELD} with "level": "task".',
        )
    if task not in tasks:
        raise ValueError(f"task {task!r} is none of the model's; allowed: {', '.join(tasks)}")
    return tasks.index(task)


def _choices(reader: CheckpointReader, config: MixtralConfig, task: int) -> list[Choice]:
    """What the task does in each layer: what it does when the model is served in its own dtype."""
    choices: list[Choice] = []
    for task_gate_SE in read_gates(reader, config, torch_dtype(config.dtype)):
        weights_SK, experts_SK = task_choices(task_gate_SE, config.top_k)
        experts: list[int] = experts_SK[task].tolist()
        weights: list[float] = weights_SK[task].tolist()
        choices.append(Choice(tuple(experts), tuple(weights)))
    return choices


def _experts(
    reader: CheckpointReader,
    naming: ExpertNaming,
    config: MixtralConfig,
    layer: int,
    choice: Choice,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor]]:
    """Yields w1 and w3 [F, D] and w2 [D, F] of the experts chosen, numbered in the order of the choice."""
    all_columns = slice(0, config.ffn_size)
    for place, (expert, weight) in enumerate(zip(choice.experts, choice.weights, strict=True)):
        sources = expert_parts(naming, config, layer, expert, all_columns)
        names = [part.name for part in expert_parts(ExpertNaming.PER_EXPERT, config, layer, place, all_columns)]
        gate, up, down = (read_part(reader, part) for part in sources)
        yield names[0], gate.to(dtype, copy=True)
        yield names[1], up.to(dtype, copy=True)
        # In float64 the products of numbers of 24 bits are exact: the only rounding is the one to `dtype`.
        yield names[2], (down.double() * (config.top_k * weight)).to(dtype)


def _whole(reader: CheckpointReader, part: TensorPart, dtype: torch.dtype) -> Tensor:
    return read_part(reader, part).to(dtype, copy=True)
