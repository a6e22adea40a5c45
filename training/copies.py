"""Moves rows to their experts' order and back, with gradients that move rows too.

The same as `router.plan.dispatch` and `combine`. Every order here is a permutation, so the way back of a gather is a
gather by its inverse; torch knows only the gather, and would add row after row into zeros. This way each row's sum is
made in one order.

T rows, D model dim, K chosen experts per row, N = T*K copies, sorted by expert.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from router.plan import sort_copies


@dataclass(frozen=True, slots=True)
class Copies:
    """Where each row's copies go.

    Args:
        order_N: Which copy (copy i is of row i // K) each place takes.
        place_N: Which place each copy takes; the inverse.
        rows_N: The row of which each place has a copy.
        counts: Copies of each expert.
        top_k: K.
    """

    order_N: Tensor
    place_N: Tensor
    rows_N: Tensor
    counts: list[int]
    top_k: int


def copies_of(experts_TK: Tensor, num_experts: int) -> Copies:
    """Returns where the copies go, on the device of `experts_TK`."""
    order_N, place_N, counts = sort_copies(experts_TK, num_experts)
    device, top_k = experts_TK.device, experts_TK.shape[1]
    return Copies(
        torch.from_numpy(order_N).to(device),
        torch.from_numpy(place_N).to(device),
        torch.from_numpy(order_N // top_k).to(device),
        counts,
        top_k,
    )


def copy_rows(rows_TD: Tensor, copies: Copies) -> Tensor:
    """Returns the copies sorted by expert, [N, D]; differentiable."""
    return _CopyRows.apply(rows_TD, copies)  # pyright: ignore[reportReturnType]


def combine_copies(answers_ND: Tensor, weights_TK: Tensor, copies: Copies) -> Tensor:
    """Returns sum over k of weight times answer, [T, D], in the answers' dtype; differentiable by both."""
    return _CombineCopies.apply(answers_ND, weights_TK.to(answers_ND.dtype), copies)  # pyright: ignore[reportReturnType]


class _CopyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_TD: Tensor, copies: Copies) -> Tensor:
        ctx.copies = copies
        return rows_TD.index_select(0, copies.rows_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _by_row(grads[0], ctx.copies).sum(1), None


class _CombineCopies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answers_ND: Tensor, weights_TK: Tensor, copies: Copies) -> Tensor:
        ctx.save_for_backward(answers_ND, weights_TK)
        ctx.copies = copies
        return (_by_row(answers_ND, copies) * weights_TK.unsqueeze(-1)).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        answers_ND, weights_TK = ctx.saved_tensors
        copies: Copies = ctx.copies
        grad_ND = grads[0].index_select(0, copies.rows_N)
        grad_weights_N = (answers_ND * grad_ND).sum(1)
        grad_weights_TK = grad_weights_N.index_select(0, copies.place_N).view_as(weights_TK)
        weights_N1 = weights_TK.reshape(-1).index_select(0, copies.order_N).unsqueeze(1)
        return grad_ND.mul_(weights_N1), grad_weights_TK, None


def _by_row(sorted_ND: Tensor, copies: Copies) -> Tensor:
    """Returns the copies in the order of their rows, [T, K, D]."""
    num_copies, width = sorted_ND.shape
    return sorted_ND.index_select(0, copies.place_N).view(num_copies // copies.top_k, copies.top_k, width)
