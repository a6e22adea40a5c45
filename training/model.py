"""The whole model in training: what is dense is on every rank, the experts are divided among the ranks of `ep`.

B sequences, L positions, T = B*L rows, D model dim, V vocabulary, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MixtralConfig
from model.norm import rms_norm
from model.rope import RotaryTable
from training.attention import Attention, AttentionPlan, additive, sees
from training.cross_entropy import linear_cross_entropy
from training.gate_input import GateInput, Jitter, gate_input_of
from training.initial import InitialWeights
from training.mesh import Mesh
from training.moe import MoeLayer, RoutedRows

IGNORED = -1  # a label from which nothing is learnt
EXPERT_PARAMETERS = ("gate_up", "down")


@dataclass(frozen=True)
class Batch:
    """The sequences that one rank computes in one step.

    Args:
        ids_BL: Token ids, int64.
        labels_BL: The id that follows each; IGNORED where nothing is to be learnt.
        positions_BL: Each position's place in its document.
        tasks_B: Each sequence's task; zeros where there are none.
    """

    ids_BL: Tensor
    labels_BL: Tensor
    positions_BL: Tensor
    tasks_B: Tensor


@dataclass(frozen=True)
class Outcome:
    """What a forward pass gives.

    Args:
        nats: The cross-entropy, summed over the labels; differentiable.
        num_labels: Labels that are not IGNORED.
        routings: One for each layer.
    """

    nats: Tensor
    num_labels: int
    routings: list[RoutedRows]


class Layer(nn.Module):
    """Norm, attention, norm, mixture of experts, each with its residual."""

    def __init__(self, weights: InitialWeights, index: int, config: MixtralConfig, mesh: Mesh) -> None:
        super().__init__()
        local = mesh.local_experts(config.num_experts)
        self.input_norm = nn.Parameter(weights.vector(f"layers.{index}.input_norm"))
        self.attention = Attention(weights.qkv(index), weights.output(index), config)
        self.post_norm = nn.Parameter(weights.vector(f"layers.{index}.post_norm"))
        experts = [weights.expert(index, expert) for expert in local]
        gate_up, down = (torch.stack(parts) for parts in zip(*experts, strict=True))
        self.moe = MoeLayer(weights.gate(index), gate_up, down, config, mesh)
        self._eps = config.norm_eps

    def forward(
        self, rows_TD: Tensor, plan: AttentionPlan, gate_input: GateInput, capacity: int | None
    ) -> tuple[Tensor, RoutedRows]:
        """Returns the rows after this layer, and what was routed where."""
        normed_TD = rms_norm(rows_TD, self.input_norm.to(rows_TD.dtype), self._eps)
        rows_TD = rows_TD + self.attention(normed_TD, plan)
        normed_TD = rms_norm(rows_TD, self.post_norm.to(rows_TD.dtype), self._eps)
        out_TD, routing = self.moe(normed_TD, gate_input, capacity)
        return rows_TD + out_TD, routing


class TrainModel(nn.Module):
    """A Mixtral to be trained.

    Args:
        weights: The initial weights.
        dtype: What is computed in; the parameters have the dtype of the weights.
    """

    def __init__(self, config: MixtralConfig, weights: InitialWeights, mesh: Mesh, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = nn.Parameter(weights.embedding())
        self.layers = nn.ModuleList(Layer(weights, index, config, mesh) for index in range(config.num_layers))
        self.final_norm = nn.Parameter(weights.vector("final_norm"))
        self.lm_head = None if config.tie_embeddings else nn.Parameter(weights.lm_head())
        self.to(mesh.device)
        self._rotary = RotaryTable(
            config.head_dim, config.rope_theta, config.max_context,
            scaling=config.rope_scaling, dtype=dtype, device=mesh.device,
        )  # fmt: skip

    def forward(self, batch: Batch, capacity: int | None = None, jitter: Jitter | None = None) -> Outcome:
        """Computes a batch's loss.

        Args:
            capacity: As `MoeLayer.forward` takes it.
            jitter: Noise for the gates; None: none, as in evaluation.
        """
        rows_TD, routings = self.rows(batch, capacity, jitter)
        labels_T = batch.labels_BL.flatten()
        nats = linear_cross_entropy(rows_TD, self.head_VD, labels_T, IGNORED)
        return Outcome(nats, int((labels_T != IGNORED).sum()), routings)

    def rows(
        self, batch: Batch, capacity: int | None = None, jitter: Jitter | None = None
    ) -> tuple[Tensor, list[RoutedRows]]:
        """Returns the normed rows [T, D] after the last layer, and each layer's routing."""
        plan = self._plan(batch.positions_BL)
        gate_input = gate_input_of(self.config.routing, batch.positions_BL, batch.tasks_B, jitter)
        rows_TD = F.embedding(batch.ids_BL.flatten(), self.embedding).to(self.dtype)
        routings: list[RoutedRows] = []
        for layer in self.layers:
            rows_TD, routing = layer(rows_TD, plan, gate_input, capacity)
            routings.append(routing)
        return rms_norm(rows_TD, self.final_norm.to(self.dtype), self.config.norm_eps), routings

    @property
    def head_VD(self) -> nn.Parameter:
        """What makes logits of normed rows: the embedding, where the two are tied."""
        return self.embedding if self.lm_head is None else self.lm_head

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields what every rank has, by name."""
        return ((name, parameter) for name, parameter in self.named_parameters() if not is_expert(name))

    def expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields what this rank has of the experts, by name: [e, ...]."""
        return ((name, parameter) for name, parameter in self.named_parameters() if is_expert(name))

    def _plan(self, positions_BL: Tensor) -> AttentionPlan:
        shape = (*positions_BL.shape, self.config.head_dim)
        cos, signed_sin = self._rotary.rows(positions_BL.flatten())
        seen_BLL = sees(positions_BL, self.config.window)
        mask_BLL = None if seen_BLL is None else additive(seen_BLL, self.dtype)
        return AttentionPlan(cos.view(shape), signed_sin.view(shape), mask_BLL)


def is_expert(name: str) -> bool:
    """Whether a parameter's name is one of the experts'."""
    return name.rpartition(".")[2] in EXPERT_PARAMETERS
