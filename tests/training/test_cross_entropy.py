"""The cross-entropy in parts against torch's own of all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import cross_entropy
from training.cross_entropy import linear_cross_entropy

IGNORED = -1


def inputs(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """13 rows, 5 wide, 11 ids; some rows do not count."""
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(13, 5, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(11, 5, dtype=torch.float64, generator=generator).mul_(3).to(torch.float32)
    labels_T = torch.randint(11, (13,), generator=generator).masked_fill_(torch.arange(13) % 4 == 1, IGNORED)
    return rows_TD, head_VD.to(dtype if dtype == torch.float64 else torch.float32).requires_grad_(), labels_T


def whole(rows_TD: Tensor, head_VD: Tensor, labels_T: Tensor) -> Tensor:
    logits_TV = F.linear(rows_TD, head_VD.to(rows_TD.dtype))
    exact_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    return F.cross_entropy(exact_TV, labels_T, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("at_once", [1, 40, 1 << 21])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    dtype: torch.dtype, tolerance: float, at_once: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    rows_TD, head_VD, labels_T = inputs(seed, dtype)
    nats, expected = linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED), whole(rows_TD, head_VD, labels_T)
    assert nats.dtype == expected.dtype
    assert float(nats.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    found = torch.autograd.grad(nats * 0.37, (rows_TD, head_VD))
    for gradient, naive in zip(found, torch.autograd.grad(expected * 0.37, (rows_TD, head_VD)), strict=True):
        assert gradient.dtype == naive.dtype
        assert float((gradient - naive).abs().max()) <= tolerance * float(naive.abs().max())


def test_in_bfloat16_the_loss_is_scaled_in_full_precision(seed: int) -> None:
    """One scale for all rows: rounded to bfloat16 it would shorten or lengthen all of their gradients alike."""
    rows_TD, head_VD, labels_T = inputs(seed, torch.bfloat16)
    (plain_TD,) = torch.autograd.grad(linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED), rows_TD)
    scaled = linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED) / 3127  # 0.2 % from what bfloat16 makes of it
    (scaled_TD,) = torch.autograd.grad(scaled, rows_TD)
    assert torch.equal(scaled_TD, (plain_TD.float() / 3127).bfloat16())


def test_a_label_outside_of_the_vocabulary_is_an_error(seed: int) -> None:
    rows_TD, head_VD, labels_T = inputs(seed, torch.float32)
    for label in (-5, 11):
        labels_T[0] = label
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED)


def test_rows_that_do_not_count_have_no_gradient(seed: int) -> None:
    rows_TD, head_VD, labels_T = inputs(seed, torch.float64)
    (gradient_TD,) = torch.autograd.grad(linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED), rows_TD)
    assert torch.equal(gradient_TD.any(1), labels_T != IGNORED)


def test_without_gradients_none_are_computed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_TD, head_VD, labels_T = inputs(seed, torch.float64)
    monkeypatch.setattr(torch, "zeros_like", lambda *args: pytest.fail("a gradient was made"))
    with torch.no_grad():
        nats = linear_cross_entropy(rows_TD, head_VD, labels_T, IGNORED)
    monkeypatch.undo()
    assert float(nats) == pytest.approx(float(whole(rows_TD, head_VD, labels_T).detach()), rel=1e-12)


def test_large_logits_do_not_overflow() -> None:
    rows_TD = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    nats = linear_cross_entropy(rows_TD, torch.eye(2), torch.tensor([0, 0]), IGNORED)
    assert float(nats.detach()) == 1000.0
    (gradient_TD,) = torch.autograd.grad(nats, rows_TD)
    assert torch.equal(gradient_TD, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_no_rows() -> None:
    nats = linear_cross_entropy(torch.zeros(0, 5, requires_grad=True), torch.zeros(11, 5), torch.zeros(0).long(), -1)
    assert float(nats.detach()) == 0.0
