"""rms_norm rounds exactly as transformers' module does."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm

from model.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [8, 64, 1000, 4096])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equals_transformers_bit_for_bit(dtype: torch.dtype, hidden: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(hidden)
    x_TD = (torch.randn(17, hidden, generator=generator) * scale).to(dtype)
    norm = MixtralRMSNorm(hidden, eps=1e-5)
    norm.weight.data = torch.randn(hidden, generator=generator).to(dtype)
    result_TD = rms_norm(x_TD, norm.weight.detach(), 1e-5)
    assert result_TD.dtype == dtype
    torch.testing.assert_close(result_TD, norm(x_TD).detach(), rtol=0, atol=0)


def test_accepts_no_rows_and_more_dimensions() -> None:
    weight_D = torch.rand(8)
    assert rms_norm(torch.empty(0, 8), weight_D, 1e-5).shape == (0, 8)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms_norm(x, weight_D, 1e-5)[1], rms_norm(x[1], weight_D, 1e-5), rtol=0, atol=0)
