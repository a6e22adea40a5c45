"""Every kernel of a linear layer computes the same product."""

import pytest
import torch

from model.linear import can_prepack, make_linear, plain_linear, prepacked_linear


@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (64, 97), (33, 5)])
def test_prepacked_equals_plain(seed: int, num_rows: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator).to(torch.bfloat16)
    rows_NI = torch.randn(num_rows, inputs, generator=generator).to(torch.bfloat16)
    exact_NO = rows_NI.double() @ weight_OI.double().T
    if not can_prepack(weight_OI):
        pytest.skip("this processor or torch build cannot hold bf16 weights prepacked")
    for linear in (plain_linear(weight_OI), prepacked_linear(weight_OI), make_linear(weight_OI)):
        product_NO = linear(rows_NI)
        assert product_NO.dtype == torch.bfloat16
        torch.testing.assert_close(product_NO.double(), exact_NO, rtol=1e-2, atol=1e-2 * inputs**0.5)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("large", [False, True])
def test_few_rows_of_large_and_small_weights(
    seed: int, num_rows: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a way of its own, and leaves oneDNN switched on for everybody else."""
    monkeypatch.setattr("model.linear.PADDING_PAYS_ELEMENTS", 0 if large else 1 << 40)
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(96, 64, generator=generator).to(torch.bfloat16)
    rows_NI = torch.randn(num_rows, 64, generator=generator).to(torch.bfloat16)
    if not can_prepack(weight_OI):
        pytest.skip("this processor or torch build cannot hold bf16 weights prepacked")
    product_NO = make_linear(weight_OI, copy_small=True)(rows_NI)
    assert product_NO.shape == (num_rows, 96)
    torch.testing.assert_close(product_NO.double(), rows_NI.double() @ weight_OI.double().T, rtol=1e-2, atol=0.1)
    assert torch._C._get_mkldnn_enabled()  # pyright: ignore[reportPrivateUsage]


def test_onednn_stays_off_for_who_has_switched_it_off() -> None:
    torch._C._set_mkldnn_enabled(False)  # pyright: ignore[reportPrivateUsage]
    try:
        make_linear(torch.eye(4, dtype=torch.bfloat16), copy_small=True)(torch.ones(1, 4, dtype=torch.bfloat16))
        assert not torch._C._get_mkldnn_enabled()  # pyright: ignore[reportPrivateUsage]
    finally:
        torch._C._set_mkldnn_enabled(True)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_types_stay_exact(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(40, 24, generator=generator, dtype=dtype)
    rows_NI = torch.randn(5, 24, generator=generator, dtype=dtype)
    assert not can_prepack(weight_OI)
    product_NO = make_linear(weight_OI)(rows_NI)
    assert product_NO.dtype == dtype
    exact_NO = rows_NI.double() @ weight_OI.double().T
    torch.testing.assert_close(product_NO.double(), exact_NO, rtol=1e-5, atol=1e-5)


def test_rows_can_be_views(seed: int) -> None:
    """The layers hand on slices and transposed rows."""
    generator = torch.Generator().manual_seed(seed)
    for dtype in (torch.float32, torch.bfloat16):
        weight_OI = torch.randn(8, 6, generator=generator).to(dtype)
        wide = torch.randn(12, 10, generator=generator).to(dtype)
        linear = make_linear(weight_OI)
        for rows_NI in (wide[::2, 1:7], wide[:, :6].T[:, :6]):
            torch.testing.assert_close(linear(rows_NI), linear(rows_NI.contiguous()), rtol=1e-2, atol=1e-2)


def test_the_weight_may_be_freed(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(32, 16, generator=generator).to(torch.bfloat16)
    if not can_prepack(weight_OI):
        pytest.skip("this processor or torch build cannot hold bf16 weights prepacked")
    linear = make_linear(weight_OI, copy_small=True)
    batches = [torch.ones(num_rows, 16, dtype=torch.bfloat16) for num_rows in (1, 2)]
    before = [linear(rows_NI) for rows_NI in batches]
    weight_OI.fill_(float("nan"))
    for rows_NI, product_NO in zip(batches, before, strict=True):
        torch.testing.assert_close(linear(rows_NI), product_NO, rtol=0, atol=0)


@pytest.mark.parametrize("reason", ["no oneDNN", "no bf16 instructions", "an older torch"])
def test_falls_back_where_nothing_can_be_prepacked(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif reason == "no bf16 instructions":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    else:
        monkeypatch.setattr("model.linear.hasattr", lambda owner, name: False, raising=False)
    weight_OI = torch.eye(4, dtype=torch.bfloat16)
    assert not can_prepack(weight_OI)
    rows_NI = torch.arange(8, dtype=torch.bfloat16).view(2, 4)
    torch.testing.assert_close(make_linear(weight_OI)(rows_NI), rows_NI, rtol=0, atol=0)
