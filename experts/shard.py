"""The weights of one shard: some experts (or one slice of their columns), every layer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_expert_layer
from experts.ffn import ExpertFFN, column_slice, warm_up
from model.config import MixtralConfig


class ExpertShard:
    """`ffn(layer, expert)` for the experts it holds."""

    def __init__(self, ffns: dict[tuple[int, int], ExpertFFN], width: int, dtype: torch.dtype) -> None:
        self._ffns = ffns
        self.num_experts = len({expert for _, expert in ffns})
        self.width = width
        self.dtype = dtype

    def ffn(self, layer: int, expert: int) -> ExpertFFN | None:
        """Returns one expert's network in one layer, or None if it is not of this shard."""
        return self._ffns.get((layer, expert))


def load_shard(
    directory: Path,
    config: MixtralConfig,
    expert_ids: Sequence[int],
    slice_index: int,
    num_slices: int,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> ExpertShard:
    """Reads (only) the weights of a shard.

    Args:
        on_progress: Called with the fraction that has been read.

    Raises:
        CheckpointError: The checkpoint is damaged or not a Mixtral; names the file, the tensor and the remedy.
        ValueError: The experts cannot be cut in that many slices.
    """
    columns = column_slice(config.ffn_size, slice_index, num_slices) if num_slices > 1 else None
    reader = CheckpointReader(directory)
    ffns: dict[tuple[int, int], ExpertFFN] = {}
    for layer in range(config.num_layers):
        for expert in expert_ids:
            weights = read_expert_layer(reader, config, layer, expert, dtype, columns)
            ffns[layer, expert] = ExpertFFN(weights.gate_up_2FD.to(device), weights.down_DF.to(device))
        on_progress((layer + 1) / config.num_layers)
    warm_up(ffns[0, expert_ids[0]], config.hidden_size, dtype, device)
    return ExpertShard(ffns, config.hidden_size, dtype)
