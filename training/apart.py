"""Experts on several ranks: rows travel to them and back while each rank computes what it has already.

A layer's ranks seldom have equally much to do, and each waits for what the others send. So a rank first computes
whatever is there, its own rows or those of others; sends the others' back before it turns to its own, if it can; and on
the way back leaves the weights' gradients, which nobody waits for, to the end. In which order rows were computed
changes no result: the sums over them are always made in one order.

N copies of this rank's rows, those for other ranks first; R rows of other ranks; D model dim, e experts here, F expert
hidden dim, G ranks of the `ep` group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from router.plan import Ints, inverse
from training import ffn
from training.exchange import Travelling, start_exchange

Own = TypeVar("Own")
Others = TypeVar("Others")


@dataclass(frozen=True)
class Journey:
    """How the rows of a layer are divided.

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


def journey_of(
    sent_Ge: Ints, received_Ge: Ints, own_counts: list[int], group: dist.ProcessGroup, device: torch.device
) -> Journey:
    """Returns how rows travel.

    Args:
        sent_Ge: Copies of this rank's rows for each expert of each rank; zeros for those here.
        received_Ge: Copies of each rank's rows for the experts here; zeros for this rank.
    """
    order_R = place_R = None
    if np.count_nonzero(received_Ge.any(1)) > 1:
        order_R, place_R = (places.to(device) for places in sorting(received_Ge))
    received, others_counts = received_Ge.sum(1).tolist(), received_Ge.sum(0).tolist()
    return Journey(group, sent_Ge.sum(1).tolist(), received, own_counts, others_counts, order_R, place_R)


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


def apart_ffn(sent_ND: Tensor, gate_up_e2FD: Tensor, down_eDF: Tensor, journey: Journey) -> Tensor:
    """Returns what `expert_ffn` would if all experts were here, [N, D]; every rank of the group calls it.

    Args:
        sent_ND: Sorted by expert, but those of the experts here come last.
    """
    return _ApartFfn.apply(sent_ND, gate_up_e2FD, down_eDF, journey)  # pyright: ignore[reportReturnType]


class _ApartFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent_ND: Tensor, gate_up_e2FD: Tensor, down_eDF: Tensor, journey: Journey) -> Tensor:
        weights = gate_up_e2FD.to(sent_ND.dtype), down_eDF.to(sent_ND.dtype)
        out_ND, num_sent = torch.empty_like(sent_ND), sum(journey.sent)
        own_ND, others = (
            sent_ND[num_sent:],
            start_exchange(sent_ND[:num_sent], journey.sent, journey.received, journey.group),
        )

        def compute_own() -> Tensor:
            return ffn.forward(own_ND, *weights, journey.own_counts, out_ND[num_sent:])

        def compute_others() -> tuple[Tensor, Tensor, Travelling]:
            rows_RD = journey.by_expert(others.wait())
            answers_RD = torch.empty_like(rows_RD)
            hidden_R2F = ffn.forward(rows_RD, *weights, journey.others_counts, answers_RD)
            answers_RD = journey.by_rank(answers_RD)
            back = start_exchange(answers_RD, journey.received, journey.sent, journey.group, into=out_ND[:num_sent])
            return rows_RD, hidden_R2F, back

        own_hidden, (rows_RD, hidden_R2F, back) = _what_is_there(others, compute_own, compute_others)
        back.wait()
        ctx.save_for_backward(own_ND, own_hidden, rows_RD, hidden_R2F, gate_up_e2FD, down_eDF)
        ctx.journey = journey
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        own_ND, own_hidden, rows_RD, hidden_R2F, gate_up_e2FD, down_eDF = ctx.saved_tensors
        journey: Journey = ctx.journey
        weights = gate_up_e2FD.to(own_ND.dtype), down_eDF.to(own_ND.dtype)
        grad_ND, num_sent = grads[0].contiguous(), sum(journey.sent)
        grad_sent_ND = torch.empty_like(grad_ND)
        others = start_exchange(grad_ND[:num_sent], journey.sent, journey.received, journey.group)

        def compute_own() -> ffn.Backward:
            way_back = ffn.Backward(own_ND, own_hidden, grad_ND[num_sent:], journey.own_counts)
            way_back.rows(*weights, out_ND=grad_sent_ND[num_sent:])
            return way_back

        def compute_others() -> tuple[ffn.Backward, Travelling]:
            way_back = ffn.Backward(rows_RD, hidden_R2F, journey.by_expert(others.wait()), journey.others_counts)
            grad_RD = journey.by_rank(way_back.rows(*weights, out_ND=torch.empty_like(rows_RD)))
            into = grad_sent_ND[:num_sent]
            return way_back, start_exchange(grad_RD, journey.received, journey.sent, journey.group, into=into)

        own_back, (others_back, back) = _what_is_there(others, compute_own, compute_others)
        grad_gate_up, grad_down = (torch.zeros_like(weight) for weight in weights)
        own_back.add_weights(grad_gate_up, grad_down)
        others_back.add_weights(grad_gate_up, grad_down)
        back.wait()
        return grad_sent_ND, grad_gate_up.to(gate_up_e2FD.dtype), grad_down.to(down_eDF.dtype), None


def _what_is_there(
    others: Travelling, compute_own: Callable[[], Own], compute_others: Callable[[], Others]
) -> tuple[Own, Others]:
    """Does both, beginning with the others' rows if they have arrived: whoever sent them waits for the answers."""
    if others.arrived():
        of_others = compute_others()
        return compute_own(), of_others
    own = compute_own()
    return own, compute_others()
