"""Root-mean-square normalisation.

Shapes: T tokens, D model dim.
"""

import torch
import torch.nn.functional as F


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight along the last dimension; any leading dimensions. Returns the shape of x.

    Rounds where transformers' MixtralRMSNorm does (normalise in float32, round to x's dtype, then multiply), so both
    agree bit for bit in float32 and in bfloat16. Handing the weight to F.rms_norm would save one call, but rounds
    bfloat16 once instead of twice; measured on a CPU the two cost the same.
    """
    return F.rms_norm(x_TD, weight_D.shape, None, eps) * weight_D
