"""Experts on several ranks: rows travel to them and back while each rank computes what it has already.

A layer's ranks seldom have equally much to do, and each waits for what the others send. So a rank begins with its own
rows; between two experts it looks whether others' rows have come, and if so computes those and sends them back before
it goes on. On the backward pass its own weights' gradients fill the wait, and those of others' rows come last. When
rows were computed changes no result: sums over them are always made in one order.

N copies of this rank's rows, those for other ranks first; R rows of other ranks; D model dim, e experts here, F expert
hidden dim, G ranks of the `ep` group.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from router.plan import Ints, inverse
from training import ffn
from training.exchange import PendingExchange, start_exchange

Result = TypeVar("Result")


@dataclass(frozen=True)
class ExchangePlan:
    """How the rows of a layer are divided among the ranks of its `ep` group.

    Args:
        sent, received: Rows for and of each rank of the group; of this one 0.
        own_counts: Rows of each expert here that are this rank's own.
        others_counts: Those that are other ranks'.
        order_R: Sorts others' rows, which come rank by rank, by expert; None: they are sorted.
        place_R: Its inverse.
    """

    group: dist.ProcessGroup
    sent: list[int]
    received: list[int]
    own_counts: list[int]
    others_counts: list[int]
    order_R: Tensor | None
    place_R: Tensor | None

    def by_expert(self, rows_RD: Tensor) -> Tensor:
        """Sorts what came."""
        return rows_RD if self.order_R is None else rows_RD.index_select(0, self.order_R)

    def by_rank(self, rows_RD: Tensor) -> Tensor:
        """Sorts what goes back."""
        return rows_RD if self.place_R is None else rows_RD.index_select(0, self.place_R)


def plan_exchange(counts_E: Ints, received_Ge: Ints, group: dist.ProcessGroup, device: torch.device) -> ExchangePlan:
    """Returns how the rows of a layer are divided.

    Args:
        counts_E: Copies of this rank's rows for each expert, wherever it is.
        received_Ge: Copies of each rank's rows for the experts here.
    """
    rank = dist.get_rank(group)
    others_Ge = received_Ge.copy()
    others_Ge[rank] = 0
    sent_Ge = counts_E.reshape(received_Ge.shape).copy()
    sent_Ge[rank] = 0
    order_R = place_R = None
    if np.count_nonzero(others_Ge.any(1)) > 1:
        order_R, place_R = (places.to(device) for places in sorting(others_Ge))
    return ExchangePlan(
        group=group,
        sent=sent_Ge.sum(1).tolist(),
        received=others_Ge.sum(1).tolist(),
        own_counts=received_Ge[rank].tolist(),
        others_counts=others_Ge.sum(0).tolist(),
        order_R=order_R,
        place_R=place_R,
    )


def sorting(counts_Ge: Ints) -> tuple[Tensor, Tensor]:
    """Returns where rows that came rank by rank, each rank's sorted by expert, stand when all are sorted by expert.

    Returns:
        order_R (sorted = received[order]) and its inverse place_R (received = sorted[place]), int64.

    >>> sorting(np.array([[1, 2], [2, 0]]))  # received: expert 0, 1, 1 from rank 0, then expert 0, 0 from rank 1
    (tensor([0, 3, 4, 1, 2]), tensor([0, 3, 4, 1, 2]))
    """
    experts_R = np.repeat(np.tile(np.arange(counts_Ge.shape[1]), counts_Ge.shape[0]), counts_Ge.reshape(-1))
    order_R = experts_R.argsort(kind="stable")
    return torch.from_numpy(order_R), torch.from_numpy(inverse(order_R))


def expert_parallel_ffn(sent_ND: Tensor, gate_up_e2FD: Tensor, down_eDF: Tensor, plan: ExchangePlan) -> Tensor:
    """Returns what `expert_ffn` would if all experts were here, [N, D]; every rank of the group calls it.

    Args:
        sent_ND: Sorted by expert, but those of the experts here come last.
    """
    return _ExpertParallelFfn.apply(sent_ND, gate_up_e2FD, down_eDF, plan)  # pyright: ignore[reportReturnType]


class _ExpertParallelFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent_ND: Tensor, gate_up_e2FD: Tensor, down_eDF: Tensor, plan: ExchangePlan) -> Tensor:
        weights = gate_up_e2FD.to(sent_ND.dtype), down_eDF.to(sent_ND.dtype)
        num_sent = sum(plan.sent)
        others = start_exchange(sent_ND[:num_sent], plan.sent, plan.received, plan.group)
        own_ND = sent_ND[num_sent:].clone()  # kept for the way back; a part of `sent_ND` would keep all of it
        out_ND = sent_ND.new_empty(sent_ND.shape)
        own = ffn.Forward(own_ND, *weights, plan.own_counts, out_ND[num_sent:])

        def compute_others() -> tuple[Tensor, Tensor, PendingExchange]:
            rows_RD = plan.by_expert(others.wait())
            answers_RD = rows_RD.new_empty(rows_RD.shape)
            there = ffn.Forward(rows_RD, *weights, plan.others_counts, answers_RD)
            ffn.run(there.steps())
            answers_RD, into = plan.by_rank(answers_RD), out_ND[:num_sent]
            back = start_exchange(answers_RD, plan.received, plan.sent, plan.group, into)
            return rows_RD, there.hidden_N2F, back

        rows_RD, hidden_R2F, back = _as_they_arrive(others, own.steps(), compute_others)
        back.wait()
        ctx.save_for_backward(own_ND, own.hidden_N2F, rows_RD, hidden_R2F, gate_up_e2FD, down_eDF)
        ctx.plan = plan
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        own_ND, own_hidden, rows_RD, hidden_R2F, gate_up_e2FD, down_eDF = ctx.saved_tensors
        plan: ExchangePlan = ctx.plan
        weights = gate_up_e2FD.to(own_ND.dtype), down_eDF.to(own_ND.dtype)
        grad_ND, num_sent = grads[0].contiguous(), sum(plan.sent)
        others = start_exchange(grad_ND[:num_sent], plan.sent, plan.received, plan.group)
        grad_sent_ND, gradients = grad_ND.new_empty(grad_ND.shape), ffn.WeightGradients(*weights)
        own_back = ffn.Backward(own_ND, own_hidden, grad_ND[num_sent:], plan.own_counts)
        own_steps = (own_back.row_steps(*weights, grad_sent_ND[num_sent:]), own_back.weight_steps(gradients))

        def compute_others() -> tuple[ffn.Backward, PendingExchange]:
            others_back = ffn.Backward(rows_RD, hidden_R2F, plan.by_expert(others.wait()), plan.others_counts)
            grad_RD = rows_RD.new_empty(rows_RD.shape)
            ffn.run(others_back.row_steps(*weights, grad_RD))
            grad_RD, into = plan.by_rank(grad_RD), grad_sent_ND[:num_sent]
            return others_back, start_exchange(grad_RD, plan.received, plan.sent, plan.group, into)

        others_back, back = _as_they_arrive(others, itertools.chain(*own_steps), compute_others)
        ffn.run(others_back.weight_steps(gradients))
        back.wait()
        return grad_sent_ND, *gradients.done(gate_up_e2FD.dtype, down_eDF.dtype), None


def _as_they_arrive(others: PendingExchange, own_steps: Iterator[None], compute_others: Callable[[], Result]) -> Result:
    """Makes all of this rank's steps, and between two of them, as soon as they have arrived, does the others' rows.

    Whoever sent them waits for the answers. A rank that still waits for theirs goes on with its own.
    """
    for _ in own_steps:
        if others.arrived():
            result = compute_others()
            ffn.run(own_steps)
            return result
    return compute_others()
