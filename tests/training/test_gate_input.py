"""The noise that gates see in training."""

import pytest
import torch

from training.gate_input import Jitter


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_noise_goes_to_its_bounds_and_not_beyond(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(200, 50, dtype=torch.float64, generator=generator)
    factors_TD = Jitter(share, generator)(rows_TD) / rows_TD
    low, high = float(factors_TD.min()), float(factors_TD.max())
    assert 1 - share - 1e-9 <= low < 1 - 0.95 * share
    assert 1 + 0.95 * share < high <= 1 + share + 1e-9
    assert float(factors_TD.mean()) == pytest.approx(1, abs=0.05 * share)


def test_no_two_values_share_their_noise(seed: int) -> None:
    jitter = Jitter(0.5, torch.Generator().manual_seed(seed))
    ones_TD = torch.ones(20, 10, dtype=torch.float64)
    assert len(torch.cat([jitter(ones_TD), jitter(ones_TD)]).unique()) == 400
