"""One expert's network: against SwiGLU as it is written, prepacked against plain, slices against the whole.

N rows, D model dim, F expert hidden dim.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import experts.ffn
from experts.ffn import WARM_ROWS, ExpertFFN, column_slice, max_rows, warm_up
from model.linear import can_prepack, plain_linear
from tests.experts.shards import FFN_SIZE, WIDTH, naive, random_ffn

CPU = torch.device("cpu")
NUM_ROWS = [1, 2, 7, 16, 65]


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_float32_is_swiglu(num_rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = random_ffn(generator)
    rows_ND = torch.randn(num_rows, WIDTH, generator=generator)
    assert torch.allclose(ExpertFFN(*weights)(rows_ND), naive(rows_ND, *weights), atol=1e-5)


def test_more_rows_than_one_product_takes(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("experts.ffn.MAX_ROWS", 4)
    generator = torch.Generator().manual_seed(seed)
    weights = random_ffn(generator)
    ffn, sizes = ExpertFFN(*weights), list[int]()
    product = ffn.product
    monkeypatch.setattr(ffn, "product", lambda rows_ND: sizes.append(len(rows_ND)) or product(rows_ND))
    rows_ND = torch.randn(11, WIDTH, generator=generator)
    assert torch.allclose(ffn(rows_ND), naive(rows_ND, *weights), atol=1e-5)
    assert sizes == [4, 4, 3]


def test_one_product_is_bounded_in_operations_too(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("experts.ffn.MAX_OPERATIONS", 6.0 * WIDTH * FFN_SIZE * 5)
    generator = torch.Generator().manual_seed(seed)
    weights = random_ffn(generator)
    ffn, sizes, told = ExpertFFN(*weights), list[int](), list[int]()
    product = ffn.product
    monkeypatch.setattr(ffn, "product", lambda rows_ND: sizes.append(len(rows_ND)) or product(rows_ND))
    rows_ND = torch.randn(12, WIDTH, generator=generator)
    assert torch.allclose(ffn(rows_ND, lambda: told.append(len(sizes))), naive(rows_ND, *weights), atol=1e-5)
    assert sizes == [5, 5, 2]
    assert told == [1, 2, 3]


@pytest.mark.parametrize(("width", "ffn_size"), [(64, 96), (4096, 14336), (6144, 16384), (16384, 53248)])
def test_the_longest_product_takes_seconds_of_a_slow_core(width: int, ffn_size: int) -> None:
    num_rows = max_rows(width, ffn_size)
    assert 1 <= num_rows <= 4096
    assert num_rows * 6 * width * ffn_size / 40e9 <= 5.0
    assert num_rows == 4096 or (num_rows + 1) * 6 * width * ffn_size / 40e9 > 5.0


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_bfloat16_is_swiglu_within_its_precision(num_rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate_up_2FD, down_DF = (weight.bfloat16() for weight in random_ffn(generator))
    rows_ND = torch.randn(num_rows, WIDTH, generator=generator).bfloat16()
    output_ND = ExpertFFN(gate_up_2FD, down_DF)(rows_ND)
    expected_ND = naive(rows_ND.double(), gate_up_2FD.double(), down_DF.double())
    assert output_ND.dtype == torch.bfloat16
    # The two products, their product and the sum are each rounded to 8 bits; over 1500 seeds the worst is 3.5 of these.
    scale = float(expected_ND.abs().max())
    assert float((output_ND.double() - expected_ND).abs().max()) < 8 * 2**-8 * max(1.0, scale)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
def test_prepacked_and_plain_agree(num_rows: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate_up_2FD, down_DF = (weight.bfloat16() for weight in random_ffn(generator, 256, 512))
    if not can_prepack(gate_up_2FD):
        pytest.skip("this processor or this build of torch cannot prepack bfloat16 weights")
    rows_ND = torch.randn(num_rows, 256, generator=generator).bfloat16()
    prepacked_ND = ExpertFFN(gate_up_2FD, down_DF)(rows_ND).float()
    monkeypatch.setattr(experts.ffn, "make_linear", plain_linear)
    plain_ND = ExpertFFN(gate_up_2FD, down_DF)(rows_ND).float()
    assert torch.allclose(prepacked_ND, plain_ND, atol=2**-6, rtol=2**-6)


@pytest.mark.parametrize("num_slices", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_slices_of_an_expert_add_up_to_it(num_slices: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate_up_2FD, down_DF = (weight.to(dtype) for weight in random_ffn(generator))
    gate_FD, up_FD = gate_up_2FD.chunk(2)
    rows_ND = torch.randn(5, WIDTH, generator=generator).to(dtype)
    total_ND = torch.zeros(5, WIDTH)
    for index in range(num_slices):
        columns = column_slice(FFN_SIZE, index, num_slices)
        share = ExpertFFN(torch.cat([gate_FD[columns], up_FD[columns]]), down_DF[:, columns].contiguous())
        total_ND += share(rows_ND).float()
    whole_ND = ExpertFFN(gate_up_2FD, down_DF)(rows_ND).float()
    tolerance = 1e-5 if dtype == torch.float32 else 4 * 2**-8 * max(1.0, float(whole_ND.abs().max()))
    assert float((total_ND - whole_ND).abs().max()) < tolerance


@given(st.integers(1, 4000), st.integers(1, 40))
def test_slices_cover_every_column_once(ffn_size: int, num_slices: int) -> None:
    if ffn_size < num_slices:
        with pytest.raises(ValueError, match=r"set experts\.slices lower"):
            column_slice(ffn_size, 0, num_slices)
        return
    cuts = [column_slice(ffn_size, index, num_slices) for index in range(num_slices)]
    covered = [column for cut in cuts for column in range(ffn_size)[cut]]
    assert covered == list(range(ffn_size))
    assert all(cut.stop > cut.start for cut in cuts)
    if ffn_size >= 16 * num_slices:
        assert all((cut.stop - cut.start) % 16 == 0 for cut in cuts[:-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_warming_up_runs_every_small_row_count(dtype: torch.dtype, seed: int) -> None:
    seen: list[tuple[torch.Size, torch.dtype]] = []

    class Recorded(ExpertFFN):
        def __call__(self, rows_ND: Tensor, on_progress: Callable[[], None] = lambda: None) -> Tensor:
            output_ND = super().__call__(rows_ND, on_progress)
            seen.append((output_ND.shape, output_ND.dtype))
            return output_ND

    weights = [weight.to(dtype) for weight in random_ffn(torch.Generator().manual_seed(seed))]
    warm_up(Recorded(*weights), WIDTH, dtype, CPU)
    assert seen == [(torch.Size((num_rows, WIDTH)), dtype) for num_rows in range(1, WARM_ROWS + 1)]
