"""Training that starts from a Hugging Face checkpoint: each rank reads only its own experts."""

from pathlib import Path

import torch
from torch import Tensor

from checkpoint.reader import CheckpointReader
from checkpoint.weights import AttentionWeights, read_attention_weights, read_expert_layer, read_gates
from model.config import MixtralConfig, read_config
from training.initial import RandomWeights


class CheckpointWeights:
    """A checkpoint's weights, as `TrainModel` asks for its initial ones.

    Args:
        config: The checkpoint's, perhaps with another routing level.
        seed: Of gates that the checkpoint does not have.
        dtype: Of the parameters.

    Raises:
        CheckpointError: It cannot be read (checkpoint/errors.py).
    """

    def __init__(self, directory: Path, config: MixtralConfig, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._seed = seed
        self._reader = CheckpointReader(directory)
        self._config = config
        self._dtype = dtype
        self._dense: AttentionWeights = read_attention_weights(self._reader, config, dtype)
        stored = read_config(directory)
        # A checkpoint of another level has no gates for this one: they start at random.
        levels = {stored.routing.level, config.routing.level}
        known = len(levels) == 1 or "task" not in levels
        self._stored_tasks = stored.routing.tasks
        self._gates = read_gates(self._reader, stored, dtype) if known else None

    def embedding(self) -> Tensor:
        return self._dense.embedding_VD

    def lm_head(self) -> Tensor:
        return self._dense.lm_head_VD

    def vector(self, name: str) -> Tensor:
        if name == "final_norm":
            return self._dense.final_norm_D
        _, layer, which = name.split(".")
        weights = self._dense.layers[int(layer)]
        return weights.input_norm_D if which == "input_norm" else weights.post_norm_D

    def qkv(self, layer: int) -> Tensor:
        return self._dense.layers[layer].qkv_ND

    def output(self, layer: int) -> Tensor:
        return self._dense.layers[layer].output_DM

    def gate(self, layer: int) -> Tensor:
        if self._gates is None:
            return self._drawn(layer)
        if self._config.routing.level != "task":
            return self._gates[layer]
        # By name: the data's tasks may be others, and in another order.
        rows = {name: self._gates[layer][place] for place, name in enumerate(self._stored_tasks)}
        drawn_SE = self._drawn(layer)
        return torch.stack([rows.get(name, drawn_SE[place]) for place, name in enumerate(self._config.routing.tasks)])

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        weights = read_expert_layer(self._reader, self._config, layer, expert, self._dtype)
        return weights.gate_up_2FD, weights.down_DF

    def _drawn(self, layer: int) -> Tensor:
        return RandomWeights(self._config, self._seed, self._dtype).gate(layer)
