"""Where an expert's weights lie in a checkpoint, in either of the two forms that transformers writes.

In either form the block may be called `block_sparse_moe` or `mlp`: the reader finds both (checkpoint/reader.py).
per expert: `model.layers.L.block_sparse_moe.experts.E.w1|w3|w2.weight` (gate [F, D], up [F, D], down [D, F])
fused:      `model.layers.L.mlp.experts.gate_up_proj` [E, 2F, D] (gate's rows, then up's) and `.down_proj` [E, D, F]

Shapes: D model dim, F expert hidden dim, E experts, S tasks.
"""

from dataclasses import dataclass
from enum import Enum

import torch

from checkpoint.errors import CheckpointError, ForeignCheckpoint, ShapeMismatch
from checkpoint.reader import CheckpointReader, Index
from model.config import MixtralConfig
from model.json_text import shortened

# Fields of config.json.
HIDDEN, FFN, EXPERTS, VOCABULARY = "hidden_size", "intermediate_size", "num_local_experts", "vocab_size"
HEADS, KV_HEADS = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"


class ExpertNaming(Enum):
    """In which form a checkpoint holds its experts, and what a layer's mixture-of-experts block is called in it."""

    PER_EXPERT = "block_sparse_moe"
    FUSED = "mlp"


def _spelled(tensor: str) -> frozenset[str]:
    prefixes = ("model.", "", "model.model.")
    return frozenset(
        f"{prefix}layers.0.{naming.value}.experts.{tensor}" for prefix in prefixes for naming in ExpertNaming
    )


_FUSED_NAMES, _PER_EXPERT_NAMES = _spelled("gate_up_proj"), _spelled("0.w1.weight")


@dataclass(frozen=True)
class TensorPart:
    """`index` of the tensor `name`, whose whole shape is `shape`; an empty index means all of it.

    `fields`: what of config.json each size of the shape is, for errors.
    """

    name: str
    shape: tuple[int, ...]
    index: Index = ()
    fields: tuple[str, ...] = ()


def read_part(reader: CheckpointReader, part: TensorPart) -> torch.Tensor:
    """What the part holds, as stored; it may map the file.

    Raises CheckpointError naming the file and the tensor, and for a wrong shape the fields of config.json too.
    """
    try:
        return reader.read_part(part.name, part.shape, part.index)
    except ShapeMismatch as error:
        stored = reader.shape_of(part.name)
        assert stored is not None
        because = _wrong_fields(stored, part)
        raise ShapeMismatch(error.where, f"{error.problem.removesuffix('.')}{because}.", error.remedy) from error


def _wrong_fields(stored: tuple[int, ...], part: TensorPart) -> str:
    """Says which fields the sizes that differ follow from."""
    if len(stored) != len(part.fields):
        return ""
    sizes = zip(stored, part.shape, part.fields, strict=True)
    return "".join(f"; {wanted} is {field}" for given, wanted, field in sizes if given != wanted)


def detect_naming(reader: CheckpointReader) -> ExpertNaming:
    """In which form the experts are.

    Raises ForeignCheckpoint when it is neither, and CheckpointError when the files cannot be read.
    """
    if reader.names & _FUSED_NAMES:
        return ExpertNaming.FUSED
    if reader.names & _PER_EXPERT_NAMES:
        return ExpertNaming.PER_EXPERT
    # The index may lack names.
    if f"model.layers.0.{ExpertNaming.FUSED.value}.experts.gate_up_proj" in reader:
        return ExpertNaming.FUSED
    naming = ExpertNaming.PER_EXPERT
    if any(name in reader for name in (gate_name(naming, 0), task_gate_name(naming, 0))):
        return naming
    raise no_mixtral(reader)


def no_mixtral(reader: CheckpointReader) -> CheckpointError:
    """The error to raise where a checkpoint has no layer like a Mixtral's."""
    some = ", ".join(map(shortened, sorted(reader.names)[:3]))
    return ForeignCheckpoint(
        str(reader.directory),
        f"no tensor is called like a Mixtral gate (model.layers.0.block_sparse_moe.gate.weight); found {some}, ...",
        "Give the weights of a MixtralForCausalLM, as save_pretrained writes them.",
    )


def gate_name(naming: ExpertNaming, layer: int) -> str:
    """The name of the layer's gate [E, D]."""
    return f"model.layers.{layer}.{naming.value}.gate.weight"


def task_gate_name(naming: ExpertNaming, layer: int) -> str:
    """The name of the layer's task gate [S, E]; a model that routes by task needs no other gate."""
    return f"model.layers.{layer}.{naming.value}.task_gate.weight"


def expert_parts(
    naming: ExpertNaming, config: MixtralConfig, layer: int, expert: int, columns: slice
) -> tuple[TensorPart, TensorPart, TensorPart]:
    """Where gate, up and down of one expert lie; `columns` has start and stop within [0, F), and step 1.

    An FFN column is a row of gate and of up, and a column of down.
    """
    ffn, hidden = config.ffn_size, config.hidden_size
    block = f"model.layers.{layer}.{naming.value}.experts"
    if naming is ExpertNaming.PER_EXPERT:
        return (
            TensorPart(f"{block}.{expert}.w1.weight", (ffn, hidden), (columns,), (FFN, HIDDEN)),
            TensorPart(f"{block}.{expert}.w3.weight", (ffn, hidden), (columns,), (FFN, HIDDEN)),
            TensorPart(f"{block}.{expert}.w2.weight", (hidden, ffn), (slice(None), columns), (HIDDEN, FFN)),
        )
    # Example: F = 96, columns 24..48 are rows 24..48 (gate) and 120..144 (up) of the 192 rows of gate_up_proj.
    up_rows = slice(ffn + columns.start, ffn + columns.stop)
    fused_fields, down_fields = (EXPERTS, f"2 x {FFN}", HIDDEN), (EXPERTS, HIDDEN, FFN)
    fused_shape, down_shape = (config.num_experts, 2 * ffn, hidden), (config.num_experts, hidden, ffn)
    return (
        TensorPart(f"{block}.gate_up_proj", fused_shape, (expert, columns), fused_fields),
        TensorPart(f"{block}.gate_up_proj", fused_shape, (expert, up_rows), fused_fields),
        TensorPart(f"{block}.down_proj", down_shape, (expert, slice(None), columns), down_fields),
    )
