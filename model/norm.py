"""Root-mean-square normalisation.

Shapes: T tokens, D model dim.
"""

import torch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; any leading dimensions. Returns the shape of x.

    Rounds where transformers' MixtralRMSNorm does (normalise in float32, round to x's dtype, then multiply), so both
    agree bit for bit in float32 and in bfloat16. Written out: on a CPU F.rms_norm does the same calls and more.
    """
    exact_TD = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
    scale_T1 = exact_TD.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (exact_TD * scale_T1).to(x_TD.dtype) * weight_D
