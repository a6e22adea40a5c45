"""The feed-forward networks of several experts on rows that are sorted by expert, with gradients.

One autograd function for all of it: torch's own graph would keep every intermediate of every expert, and would make a
whole gradient of zeros for each slice of the experts' weights.

E experts, N rows, F expert hidden dim, D model dim; n rows of one expert.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_ffn(rows_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns down(silu(gate(x)) * up(x)) of each row's expert (SwiGLU, arXiv 2002.05202), [N, D], in the rows' dtype.

    Args:
        rows_ND: Those of the first expert, then those of the second, and so on.
        gate_up_E2FD: Each expert's gate rows, then its up rows. Computed in the rows' dtype; its gradient has its own.
        down_EDF: Each expert's down projection; likewise.
        counts: Rows of each expert; any of them may be 0.
    """
    assert sum(counts) == rows_ND.shape[0], f"{rows_ND.shape[0]} rows, but the counts are {list(counts)}"
    return _ExpertFfn.apply(rows_ND, gate_up_E2FD, down_EDF, list(counts))  # pyright: ignore[reportReturnType]


def forward(rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts: Sequence[int], out_ND: Tensor) -> Tensor:
    """Writes the outputs to `out_ND`; returns what backward needs, [N, 2F]: gate(x) and up(x). All have one dtype."""
    hidden_N2F = rows_ND.new_empty(rows_ND.shape[0], gate_up.shape[1])
    for expert, part in _parts(counts):
        torch.mm(rows_ND[part], gate_up[expert].t(), out=hidden_N2F[part])
        gate_nF, up_nF = hidden_N2F[part].chunk(2, dim=1)
        torch.mm(F.silu(gate_nF).mul_(up_nF), down[expert].t(), out=out_ND[part])
    return hidden_N2F


class Backward:
    """The way back of rows that `forward` has computed: first what others wait for, then the weights' gradients.

    Args:
        rows_ND, hidden_N2F: What `forward` was given, and returned.
        grad_out_ND: Of the outputs.
    """

    def __init__(self, rows_ND: Tensor, hidden_N2F: Tensor, grad_out_ND: Tensor, counts: Sequence[int]) -> None:
        self._rows_ND = rows_ND
        self._hidden_N2F = hidden_N2F
        self._grad_out_ND = grad_out_ND
        self._counts = counts
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def rows(self, gate_up: Tensor, down: Tensor, out_ND: Tensor) -> Tensor:
        """Writes the rows' gradient to `out_ND`, and returns it."""
        for expert, part in _parts(self._counts):
            grad_activated_nF = self._grad_out_ND[part].mm(down[expert])
            activated_nF, grad_hidden_n2F = _through_swiglu(self._hidden_N2F[part], grad_activated_nF)
            torch.mm(grad_hidden_n2F, gate_up[expert], out=out_ND[part])
            self._kept[expert] = activated_nF, grad_hidden_n2F
        return out_ND

    def add_weights(self, grad_gate_up: Tensor, grad_down: Tensor) -> None:
        """Adds the weights' gradients to [E, 2F, D] and [E, D, F]; after `rows`, once."""
        for expert, part in _parts(self._counts):
            activated_nF, grad_hidden_n2F = self._kept.pop(expert)
            grad_down[expert].addmm_(self._grad_out_ND[part].t(), activated_nF)
            grad_gate_up[expert].addmm_(grad_hidden_n2F.t(), self._rows_ND[part])


class _ExpertFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, counts: list[int]) -> Tensor:
        out_ND = torch.empty_like(rows_ND)
        gate_up, down = gate_up_E2FD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
        hidden_N2F = forward(rows_ND, gate_up, down, counts, out_ND)
        ctx.save_for_backward(rows_ND, gate_up_E2FD, down_EDF, hidden_N2F)
        ctx.counts = counts
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows_ND, gate_up_E2FD, down_EDF, hidden_N2F = ctx.saved_tensors
        gate_up, down = gate_up_E2FD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
        way_back = Backward(rows_ND, hidden_N2F, grads[0].contiguous(), ctx.counts)
        grad_rows_ND = way_back.rows(gate_up, down, out_ND=torch.empty_like(rows_ND))
        grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        way_back.add_weights(grad_gate_up, grad_down)
        return grad_rows_ND, grad_gate_up.to(gate_up_E2FD.dtype), grad_down.to(down_EDF.dtype), None


def _through_swiglu(hidden_n2F: Tensor, grad_activated_nF: Tensor) -> tuple[Tensor, Tensor]:
    """Returns silu(gate) * up, made again, and its gradient's way back to gate and up, [n, 2F]."""
    gate_nF, up_nF = hidden_n2F.chunk(2, dim=1)
    silu_nF = F.silu(gate_nF)
    grad_hidden_n2F = torch.empty_like(hidden_n2F)
    grad_gate_nF, grad_up_nF = grad_hidden_n2F.chunk(2, dim=1)
    torch.mul(grad_activated_nF, silu_nF, out=grad_up_nF)
    torch.ops.aten.silu_backward.grad_input(grad_activated_nF.mul_(up_nF), gate_nF, grad_input=grad_gate_nF)
    return silu_nF.mul_(up_nF), grad_hidden_n2F


def _parts(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yields each expert that has rows, and which they are."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
            start += count
