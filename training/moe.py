"""One layer's mixture of experts in training: gate, dispatch, exchange, experts, exchange back, combine.

T rows of this rank, D model dim, E experts, e experts that this rank holds, K chosen experts per row, N = T*K copies,
R copies received for the experts here, G ranks of the `ep` group, C capacity, F expert hidden dim,
S tasks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.config import MixtralConfig
from router.capacity import combine_from_capacity, dispatch_to_capacity
from router.gating import choose
from training.copies import combine_copies, copies_of, copy_rows
from training.exchange import start_counts
from training.expert_parallel import expert_parallel_ffn, plan_exchange
from training.ffn import expert_ffn
from training.gate_input import GateInput
from training.mesh import Mesh


@dataclass(frozen=True)
class RoutedRows:
    """What one layer did with this rank's rows.

    Args:
        probs_E: Each expert's probability (softmax over all experts), summed over the rows; differentiable.
        z: log(sum(exp(logits)))², summed over the rows; differentiable.
        counts_E: Copies asked of each expert, also those that were dropped.
        num_dropped: Copies that found their expert full.
    """

    probs_E: Tensor
    z: Tensor
    counts_E: Tensor
    num_dropped: int


class MoeLayer(nn.Module):
    """The experts that this rank holds, and the gate, which every rank has.

    Args:
        gate: The initial weights, [E, D]; at level task [S, E].
        gate_up_e2FD, down_eDF: Those of the experts here.
    """

    def __init__(self, gate: Tensor, gate_up_e2FD: Tensor, down_eDF: Tensor, config: MixtralConfig, mesh: Mesh) -> None:
        super().__init__()
        self.gate = nn.Parameter(gate)
        self.gate_up = nn.Parameter(gate_up_e2FD)
        self.down = nn.Parameter(down_eDF)
        self._num_experts = config.num_experts
        self._top_k = config.top_k
        self._mesh = mesh

    def forward(self, rows_TD: Tensor, gate_input: GateInput, capacity: int | None) -> tuple[Tensor, RoutedRows]:
        """Returns the combined outputs [T, D] and what was routed where.

        Args:
            gate_input: What the gate goes by, beside the rows.
            capacity: C, the same on every rank; None: dropless.
        """
        logits_TE = gate_input.logits(rows_TD, self.gate)
        weights_TK, experts_TK = choose(logits_TE, self._top_k)
        if capacity is None:
            (out_TD, counts), dropped = self._dropless(rows_TD, weights_TK, experts_TK), 0
        else:
            sent_ECD, full = dispatch_to_capacity(rows_TD, weights_TK, experts_TK, self._num_experts, capacity)
            out_TD = combine_from_capacity(full, self._buffered(sent_ECD))
            counts, dropped = full.counts, full.num_dropped
        probs_E = logits_TE.softmax(-1).sum(0)
        z = logits_TE.logsumexp(-1).square().sum()
        return out_TD, RoutedRows(probs_E, z, torch.tensor(counts), dropped)

    def _dropless(self, rows_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> tuple[Tensor, list[int]]:
        """Returns the combined outputs [T, D], and how many copies were asked of each expert."""
        group, num_experts = self._mesh.ep, self._num_experts
        if group is None:
            copies = copies_of(experts_TK, num_experts)
            answers_ND = expert_ffn(copy_rows(rows_TD, copies), self.gate_up, self.down, copies.counts)
            return combine_copies(answers_ND, weights_TK, copies), copies.counts
        here = self._mesh.local_experts(num_experts)
        # Copies that stay come last, whatever the number of their expert.
        stays_TK = (experts_TK >= here.start) & (experts_TK < here.stop)
        copies = copies_of(experts_TK + stays_TK * num_experts, 2 * num_experts)
        counts_E = np.add(copies.counts[:num_experts], copies.counts[num_experts:])
        coming = start_counts(torch.from_numpy(counts_E).view(group.size(), -1).to(rows_TD.device), group)
        sent_ND = copy_rows(rows_TD, copies)
        plan = plan_exchange(counts_E, coming.wait().cpu().numpy(), group, rows_TD.device)
        answers_ND = expert_parallel_ffn(sent_ND, self.gate_up, self.down, plan)
        return combine_copies(answers_ND, weights_TK, copies), counts_E.tolist()

    def _buffered(self, sent_ECD: Tensor) -> Tensor:
        """Returns what the experts make of buffers [E, C, D], one for each: the same exchange, with equal counts."""
        group, (num_experts, capacity, _) = self._mesh.ep, sent_ECD.shape
        if group is None:
            counts = [capacity] * num_experts
            return expert_ffn(sent_ECD.flatten(0, 1), self.gate_up, self.down, counts).view_as(sent_ECD)
        here = self._mesh.local_experts(num_experts)
        order_E = torch.tensor([*range(here.start), *range(here.stop, num_experts), *here], device=sent_ECD.device)
        counts_E = np.full(num_experts, capacity)
        plan = plan_exchange(counts_E, np.full((group.size(), len(here)), capacity), group, sent_ECD.device)
        ordered_ND = sent_ECD.index_select(0, order_E).flatten(0, 1)
        answers_ND = expert_parallel_ffn(ordered_ND, self.gate_up, self.down, plan)
        return answers_ND.view_as(sent_ECD).index_select(0, order_E.argsort())
