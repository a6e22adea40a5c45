"""Root-mean-square normalisation.

Shapes: T tokens, D model dim.
"""

import math

import torch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; any leading dimensions. Returns the shape of x.

    Rounds where transformers' MixtralRMSNorm does (normalise in float32, round to x's dtype, then multiply), so both
    agree bit for bit in float32 and in bfloat16 (but for a single row without gradients: see `_norm_row`). Written out:
    on a CPU F.rms_norm does the same calls and more.
    """
    alone = x_TD.dim() == 2 and x_TD.shape[0] == 1 and x_TD.is_cpu and x_TD.dtype == weight_D.dtype
    if alone and not torch.is_grad_enabled():
        return _norm_row(x_TD, weight_D, eps)
    exact_TD = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
    scale_T1 = exact_TD.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (exact_TD * scale_T1).to(x_TD.dtype) * weight_D


def _norm_row(x_1D: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """The same of a single row: four calls for eight, where each costs 10 µs or more (docs/performance.md).

    The factor is a float64 and is rounded once, to the float32 that the row is multiplied in; so it can differ from
    the other way's in float32's last bit.
    """
    exact = torch.float64 if x_1D.dtype == torch.float64 else torch.float32
    length = torch.linalg.vector_norm(x_1D, dtype=exact).item()
    return (x_1D * (1 / math.sqrt(length * length / x_1D.shape[1] + eps))).mul_(weight_D)
