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
from torch.autograd.function import once_differentiable


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


class Forward:
    """The way there of some rows, expert by expert.

    Args:
        rows_ND: Sorted by expert; all that is given has their dtype.
        out_ND: Where the outputs go.

    Attributes:
        hidden_N2F: gate(x) and up(x), which the way back needs.
    """

    def __init__(self, rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts: Sequence[int], out_ND: Tensor) -> None:
        self.hidden_N2F = rows_ND.new_empty(rows_ND.shape[0], gate_up.shape[1])
        self._rows_ND, self._out_ND = rows_ND, out_ND
        self._gate_up, self._down, self._counts = gate_up, down, counts

    def steps(self) -> Iterator[None]:
        """Computes one expert's rows with each step."""
        for expert, part in _parts(self._counts):
            torch.mm(self._rows_ND[part], self._gate_up[expert].t(), out=self.hidden_N2F[part])
            gate_nF, up_nF = self.hidden_N2F[part].chunk(2, dim=1)
            torch.mm(F.silu(gate_nF).mul_(up_nF), self._down[expert].t(), out=self._out_ND[part])
            yield


class Backward:
    """The way back of what `Forward` has computed: first what others wait for, then the weights' gradients.

    Args:
        rows_ND, hidden_N2F, counts: What `Forward` was given, and has made.
        grad_out_ND: Of the outputs.
    """

    def __init__(self, rows_ND: Tensor, hidden_N2F: Tensor, grad_out_ND: Tensor, counts: Sequence[int]) -> None:
        self._rows_ND = rows_ND
        self._hidden_N2F = hidden_N2F
        self._grad_out_ND = grad_out_ND
        self._counts = counts
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def row_steps(self, gate_up: Tensor, down: Tensor, out_ND: Tensor) -> Iterator[None]:
        """Writes the rows' gradient to `out_ND`, one expert's with each step."""
        for expert, part in _parts(self._counts):
            grad_activated_nF = self._grad_out_ND[part].mm(down[expert])
            activated_nF, grad_hidden_n2F = _through_swiglu(self._hidden_N2F[part], grad_activated_nF)
            torch.mm(grad_hidden_n2F, gate_up[expert], out=out_ND[part])
            self._kept[expert] = activated_nF, grad_hidden_n2F
            yield

    def weight_steps(self, gradients: "WeightGradients") -> Iterator[None]:
        """Adds to the weights' gradients, one expert's with each step, which follows its row step."""
        for expert, part in _parts(self._counts):
            activated_nF, grad_hidden_n2F = self._kept.pop(expert)
            gradients.add(expert, grad_hidden_n2F, self._rows_ND[part], self._grad_out_ND[part], activated_nF)
            yield


class WeightGradients:
    """Sums over rows that come in several parts, [E, 2F, D] and [E, D, F]."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        self._gate_up, self._down = torch.empty_like(gate_up), torch.empty_like(down)
        self._begun: set[int] = set()

    def add(self, expert: int, grad_hidden_n2F: Tensor, rows_nD: Tensor, grad_out_nD: Tensor, act_nF: Tensor) -> None:
        """Adds what n rows of one expert give."""
        beta = int(expert in self._begun)  # with 0 what is there is not even read
        self._begun.add(expert)
        self._down[expert].addmm_(grad_out_nD.t(), act_nF, beta=beta)
        self._gate_up[expert].addmm_(grad_hidden_n2F.t(), rows_nD, beta=beta)

    def done(self, gate_up_dtype: torch.dtype, down_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the sums; zeros for experts without rows."""
        for expert in set(range(self._down.shape[0])) - self._begun:
            self._gate_up[expert].zero_()
            self._down[expert].zero_()
        return self._gate_up.to(gate_up_dtype), self._down.to(down_dtype)


def run(steps: Iterator[object]) -> None:
    """Makes all steps that are left."""
    for _ in steps:
        pass


class _ExpertFfn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, counts: list[int]) -> Tensor:
        out_ND = rows_ND.new_empty(rows_ND.shape)
        there = Forward(rows_ND, gate_up_E2FD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype), counts, out_ND)
        run(there.steps())
        ctx.save_for_backward(rows_ND, gate_up_E2FD, down_EDF, there.hidden_N2F)
        ctx.counts = counts
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows_ND, gate_up_E2FD, down_EDF, hidden_N2F = ctx.saved_tensors
        gate_up, down = gate_up_E2FD.to(rows_ND.dtype), down_EDF.to(rows_ND.dtype)
        back = Backward(rows_ND, hidden_N2F, grads[0].contiguous(), ctx.counts)
        grad_rows_ND, gradients = rows_ND.new_empty(rows_ND.shape), WeightGradients(gate_up, down)
        # In turns: what an expert's row step leaves is still in the caches.
        run(zip(back.row_steps(gate_up, down, grad_rows_ND), back.weight_steps(gradients), strict=True))
        return grad_rows_ND, *gradients.done(gate_up_E2FD.dtype, down_EDF.dtype), None


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
