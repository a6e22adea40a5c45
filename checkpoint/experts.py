"""Where an expert's weights lie in a checkpoint, in either of the two namings that transformers writes.

per expert: `model.layers.L.block_sparse_moe.experts.E.w1|w3|w2.weight` (gate [F, D], up [F, D], down [D, F])
fused:      `model.layers.L.mlp.experts.gate_up_proj` [E, 2F, D] (gate's rows, then up's) and `.down_proj` [E, D, F]

Shapes: D model dim, F expert hidden dim, E experts, S tasks.
"""

from dataclasses import dataclass
from enum import Enum

from checkpoint.errors import ForeignCheckpoint
from checkpoint.reader import CheckpointReader, Index
from model.config import MixtralConfig


class ExpertNaming(Enum):
    """The name that a layer's mixture-of-experts block has in the checkpoint."""

    PER_EXPERT = "block_sparse_moe"
    FUSED = "mlp"


@dataclass(frozen=True)
class TensorPart:
    """`index` of the tensor `name`, whose whole shape is `shape`; an empty index means all of it."""

    name: str
    shape: tuple[int, ...]
    index: Index = ()


def detect_naming(reader: CheckpointReader) -> ExpertNaming:
    """Which naming the checkpoint uses. Raises ForeignCheckpoint when it has neither."""
    for naming in ExpertNaming:
        if gate_name(naming, layer=0) in reader or task_gate_name(naming, layer=0) in reader:
            return naming
    some = ", ".join(sorted(reader.names)[:3])
    raise ForeignCheckpoint(
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
            TensorPart(f"{block}.{expert}.w1.weight", (ffn, hidden), (columns,)),
            TensorPart(f"{block}.{expert}.w3.weight", (ffn, hidden), (columns,)),
            TensorPart(f"{block}.{expert}.w2.weight", (hidden, ffn), (slice(None), columns)),
        )
    # Example: F = 96, columns 24..48 are rows 24..48 (gate) and 120..144 (up) of the 192 rows of gate_up_proj.
    up_rows = slice(ffn + columns.start, ffn + columns.stop)
    fused_shape, down_shape = (config.num_experts, 2 * ffn, hidden), (config.num_experts, hidden, ffn)
    return (
        TensorPart(f"{block}.gate_up_proj", fused_shape, (expert, columns)),
        TensorPart(f"{block}.gate_up_proj", fused_shape, (expert, up_rows)),
        TensorPart(f"{block}.down_proj", down_shape, (expert, slice(None), columns)),
    )
