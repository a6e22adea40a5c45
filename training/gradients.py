"""Gradients over the ranks: summed where ranks hold the same parameter, divided by the world, measured once.

Each rank's loss is a share whose mean over the world is the loss (training/losses.py). An expert sees the rows of every
rank of its `ep` group already; so its gradient is the sum over `ep_dp` divided by the whole world, not by EDP alone.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from training.mesh import Mesh


def reduce_gradients(dense: Sequence[Tensor], experts: Sequence[Tensor], mesh: Mesh) -> None:
    """Turns each rank's gradients into those of the whole batch's loss, in place.

    Args:
        dense: Of the parameters that every rank has, in the same order on all.
        experts: Of the experts that this rank holds.
    """
    if mesh.everybody is None:
        return
    pending = [] if mesh.ep_dp is None else [_start(gradient, mesh.ep_dp) for gradient in experts]
    flat = torch.cat([gradient.flatten() for gradient in dense])
    dist.all_reduce(flat, group=mesh.everybody)
    for gradient, summed in zip(dense, flat.split([gradient.numel() for gradient in dense]), strict=True):
        torch.div(summed.view_as(gradient), mesh.world, out=gradient)
    for work in pending:
        work.wait()
    for gradient in experts:
        gradient.div_(mesh.world)


def global_norm(dense: Sequence[Tensor], experts: Sequence[Tensor], mesh: Mesh) -> float:
    """Returns the length of the whole model's gradient: each shard of the experts counts once, whatever EDP is."""
    squares = torch.stack([_square_of(dense, mesh.device), _square_of(experts, mesh.device)])
    if mesh.ep is not None:
        dist.all_reduce(squares[1], group=mesh.ep)
    return math.sqrt(float(squares.sum()))


def clip(gradients: Sequence[Tensor], norm: float, limit: float) -> None:
    """Shortens gradients in place so that the whole model's, now `norm` long, is at most `limit` long."""
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)


def _square_of(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([torch.linalg.vector_norm(gradient).double() for gradient in gradients]).square().sum()


def _start(gradient: Tensor, group: dist.ProcessGroup) -> dist.Work:
    work = dist.all_reduce(gradient, group=group, async_op=True)
    assert work is not None
    return work
