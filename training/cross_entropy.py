"""The cross-entropy of many rows, without the logits of all of them at once.

The logits of some rows are made, turned into their loss and its gradient while they lie in the caches, and forgotten
(fused linear cross-entropy, as in Liger Kernel, arXiv 2410.10989). What is kept for the backward pass is as large as
the rows and the head, not rows times vocabulary.

T rows, t rows of a part, D model dim, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 21  # 8 MB


def linear_cross_entropy(rows_TD: Tensor, head_VD: Tensor, labels_T: Tensor, ignored: int) -> Tensor:
    """Returns the sum over the rows of -log softmax(rows @ head.T)[label]; differentiable by rows and head.

    Args:
        rows_TD: What is computed in has their dtype; exponentials and sums are in float32 (float64 stays so).
        head_VD: In any dtype; its gradient has the same.
        labels_T: Each row's id, int64; `ignored`: the row does not count.

    Returns:
        A scalar in float32, or float64.
    """
    learning = torch.is_grad_enabled() and (rows_TD.requires_grad or head_VD.requires_grad)
    return _LinearCrossEntropy.apply(rows_TD, head_VD, labels_T, ignored, learning)  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_TD: Tensor, head_VD: Tensor, labels_T: Tensor, ignored: int, learning: bool) -> Tensor:
        head = head_VD.to(rows_TD.dtype)
        exact = torch.float64 if rows_TD.dtype == torch.float64 else torch.float32
        nats = torch.zeros((), dtype=exact, device=rows_TD.device)
        grad_TD, grad_VD = (torch.empty_like(rows_TD), torch.zeros_like(head_VD)) if learning else (None, None)
        size = _rows_at_once(rows_TD.shape[0], rows_TD.shape[1], head.shape[0])
        for start in range(0, rows_TD.shape[0], size):
            part = slice(start, start + size)
            rows = _Rows(rows_TD[part].mm(head.t()).to(exact), labels_T[part], ignored)
            nats += rows.nats
            if grad_TD is not None and grad_VD is not None:
                grad_tV = rows.gradient().to(head.dtype)
                torch.mm(grad_tV, head, out=grad_TD[part])
                _add_product(grad_VD, grad_tV.t(), rows_TD[part])
        ctx.save_for_backward(grad_TD, grad_VD)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_TD, grad_VD = ctx.saved_tensors
        # In full precision: one scale for all rows, rounded to bfloat16, would lengthen or shorten them all alike.
        scaled_TD = grad_TD.to(grads[0].dtype) * grads[0]
        return scaled_TD.to(grad_TD.dtype), grad_VD * grads[0], None, None, None


def _rows_at_once(num_rows: int, width: int, vocab_size: int) -> int:
    """As many as their logits fit the caches, or are as large as all rows, if that is more."""
    return max(1, LOGITS_AT_ONCE // vocab_size, num_rows * width // vocab_size)


class _Rows:
    """The loss of some rows, and its gradient by their logits [t, V], which are used up.

    Args:
        labels_t: Out of bounds, but for `ignored`, they are torch's error.
    """

    def __init__(self, logits_tV: Tensor, labels_t: Tensor, ignored: int) -> None:
        counts = labels_t != ignored
        self._counts_t1, self._labels_t1 = (
            counts.to(logits_tV.dtype).unsqueeze(1),
            labels_t.where(counts, 0).unsqueeze(1),
        )
        logits_tV.sub_(logits_tV.amax(1, keepdim=True))
        of_label_t1 = logits_tV.gather(1, self._labels_t1)
        self._powers_tV = logits_tV.exp_()
        self._sums_t1 = self._powers_tV.sum(1, keepdim=True)
        self.nats = ((self._sums_t1.log() - of_label_t1) * self._counts_t1).sum()

    def gradient(self) -> Tensor:
        """Returns it, [t, V]; once."""
        probs_tV = self._powers_tV.mul_(self._counts_t1 / self._sums_t1)
        return probs_tV.scatter_add_(1, self._labels_t1, -self._counts_t1)


def _add_product(sum_VD: Tensor, left_Vt: Tensor, right_tD: Tensor) -> None:
    if sum_VD.dtype == right_tD.dtype:
        sum_VD.addmm_(left_Vt, right_tD)
    else:  # parts are rounded to what is computed in, their sum is not
        sum_VD.add_(left_Vt.mm(right_tD))
