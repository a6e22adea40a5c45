"""All-to-all with gradients: rows travel to the ranks that hold their experts, and gradients travel back.

N rows sent, R rows received, D model dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange_rows(rows_ND: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Sends each rank of a group its rows; returns what this rank gets, in the order of the ranks.

    Args:
        rows_ND: The rows for the group's first rank, then those for its second, and so on.
        sent: How many rows go to each rank.
        received: How many come from each; what those ranks have in their `sent`.

    Returns:
        Rows [sum(received), D]; differentiable.
    """
    return _Exchange.apply(rows_ND, list(sent), list(received), group)  # pyright: ignore[reportReturnType]


def exchange_counts(counts_GN: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sends row g of `counts_GN` to rank g of the group; returns the rows that the ranks sent to this one, [G, N].

    Whoever receives rows has to know how many: gloo and NCCL do not look, and would give garbage.
    """
    received_GN = torch.empty_like(counts_GN)
    dist.all_to_all_single(received_GN, counts_GN.contiguous(), group=group)
    return received_GN


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows_ND, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_to_all(rows_ND: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    assert rows_ND.shape[0] == sum(sent), f"{rows_ND.shape[0]} rows, but {sent} are to be sent"
    received_RD = rows_ND.new_empty(sum(received), *rows_ND.shape[1:])
    dist.all_to_all_single(received_RD, rows_ND.contiguous(), received, sent, group=group)
    return received_RD
