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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@torch.no_grad()
def test_a_single_row_differs_in_the_last_bit_at_most(dtype: torch.dtype, scale: float, seed: int) -> None:
    """Without gradients one row takes a shorter way."""
    generator = torch.Generator().manual_seed(seed)
    rows_TD = (torch.randn(50, 1000, generator=generator) * scale).to(dtype)
    weight_D = torch.randn(1000, generator=generator).to(dtype)
    together_TD = rms_norm(rows_TD, weight_D, 1e-5)
    alone_TD = torch.cat([rms_norm(row_1D, weight_D, 1e-5) for row_1D in rows_TD.split(1)])
    assert alone_TD.dtype == dtype
    torch.testing.assert_close(alone_TD, together_TD, rtol=16 * torch.finfo(dtype).eps, atol=0)
    assert dtype != torch.bfloat16 or (alone_TD != together_TD).float().mean() < 1e-3


def test_a_single_row_keeps_its_gradient() -> None:
    x_TD = torch.randn(1, 8, requires_grad=True)
    rms_norm(x_TD, torch.ones(8), 1e-5).sum().backward()
    assert x_TD.grad is not None
