"""The weights that training starts from: random ones, the same whatever the number of ranks.

Each tensor has a generator of its own, seeded by its name, and each expert too: so any division of the experts among
ranks starts from the same model.

V vocabulary, D model dim, F expert hidden dim, E experts, N rows of the joint projection, M columns of the output
one, S tasks.
"""

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from model.config import MixtralConfig

DEVIATION = 0.02  # as transformers initialises Mixtral


class InitialWeights(Protocol):
    """What a model is made from; every tensor is the caller's own."""

    def embedding(self) -> Tensor:
        """[V, D]"""
        ...

    def lm_head(self) -> Tensor:
        """[V, D]"""
        ...

    def vector(self, name: str) -> Tensor:
        """A norm's weights [D]: `final_norm`, `layers.L.input_norm` or `layers.L.post_norm`."""
        ...

    def qkv(self, layer: int) -> Tensor:
        """[N, D]: query rows, then key rows, then value rows."""
        ...

    def output(self, layer: int) -> Tensor:
        """[D, M]"""
        ...

    def gate(self, layer: int) -> Tensor:
        """[E, D]; at level task [S, E]"""
        ...

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        """Gate rows above up rows [2F, D], and down [D, F]."""
        ...


class RandomWeights:
    """Normally distributed weights; norms are ones.

    Args:
        dtype: Of the parameters: float32, or float64.
    """

    def __init__(self, config: MixtralConfig, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._config = config
        self._seed = seed
        self._dtype = dtype

    def embedding(self) -> Tensor:
        return self._normal("embedding", self._config.vocab_size, self._config.hidden_size)

    def lm_head(self) -> Tensor:
        return self._normal("lm_head", self._config.vocab_size, self._config.hidden_size)

    def vector(self, name: str) -> Tensor:
        return torch.ones(self._config.hidden_size, dtype=self._dtype)

    def qkv(self, layer: int) -> Tensor:
        rows = self._config.query_size + 2 * self._config.key_value_size
        return self._normal(f"layers.{layer}.qkv", rows, self._config.hidden_size)

    def output(self, layer: int) -> Tensor:
        return self._normal(f"layers.{layer}.output", self._config.hidden_size, self._config.query_size)

    def gate(self, layer: int) -> Tensor:
        routing, num_experts = self._config.routing, self._config.num_experts
        if routing.level == "task":
            return self._normal(f"layers.{layer}.task_gate", len(routing.tasks), num_experts)
        return self._normal(f"layers.{layer}.gate", num_experts, self._config.hidden_size)

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        name, hidden, ffn = f"layers.{layer}.experts.{expert}", self._config.hidden_size, self._config.ffn_size
        return self._normal(f"{name}.gate_up", 2 * ffn, hidden), self._normal(f"{name}.down", hidden, ffn)

    def _normal(self, name: str, *shape: int) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        # Drawn in float64: the model is the same one in every dtype, but for rounding.
        return torch.empty(*shape, dtype=torch.float64).normal_(0.0, DEVIATION, generator=generator).to(self._dtype)
