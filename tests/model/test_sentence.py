"""The running means against a loop over every row; chunks, gradients, and rows that are no numbers.

T rows, D model dim, R runs.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.sentence import SUM_DTYPE, Runs, make_runs, runs_of_positions, sentence_means

WIDTH = 5
CPU = torch.device("cpu")


def naive(rows_TD: Tensor, num_positions: int) -> Tensor:
    """The means of one whole sequence, row by row."""
    means = [rows_TD[: min(t + 1, num_positions)].double().mean(0) for t in range(len(rows_TD))]
    return torch.stack(means).to(rows_TD.dtype)


def packed(firsts: list[int], counts: list[int], num_positions: int) -> Runs:
    return make_runs(np.array(firsts), np.array(counts), num_positions, CPU)


@given(st.data())
def test_any_way_to_cut_sequences_in_steps(data: st.DataObject) -> None:
    """Each step takes some next rows of some sequences, in any order; lanes hold other sequences' leavings at first."""
    num_positions = data.draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    sequences = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    done, means = [0] * len(sequences), [list[Tensor]() for _ in sequences]
    carried_BD = torch.full((len(sequences), WIDTH), torch.nan, dtype=SUM_DTYPE)
    while left := [index for index, length in enumerate(lengths) if done[index] < length]:
        chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, max_size=4, unique=True))
        counts = [data.draw(st.integers(1, lengths[index] - done[index])) for index in chosen]
        parts = [sequences[i][done[i] : done[i] + count] for i, count in zip(chosen, counts, strict=True)]
        runs = packed([done[index] for index in chosen], counts, num_positions)
        means_TD, sums_RD = sentence_means(torch.cat(parts), runs, carried_BD[chosen])
        carried_BD[chosen] = sums_RD
        for index, count, part_TD in zip(chosen, counts, means_TD.split(counts), strict=True):
            means[index].append(part_TD)
            done[index] += count
    for rows_TD, parts, sums_D in zip(sequences, means, carried_BD, strict=True):
        assert torch.equal(torch.cat(parts), naive(rows_TD, num_positions))
        assert torch.allclose(sums_D, rows_TD[:num_positions].double().sum(0))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 14), st.integers(0, 2**32))
def test_packed_documents(lengths: list[int], num_positions: int, seed: int) -> None:
    documents = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed + n)) for n in lengths]
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    means_TD, _ = sentence_means(torch.cat(documents), runs_of_positions(positions_T, num_positions))
    assert torch.equal(means_TD, torch.cat([naive(document_TD, num_positions) for document_TD in documents]))


@pytest.mark.parametrize("positions", [[1, 2], [0, 2], [0, 1, 1], [0, 1, 3, 0]])
def test_positions_that_do_not_count_from_zero(positions: list[int]) -> None:
    with pytest.raises(AssertionError, match="count from 0"):
        runs_of_positions(torch.tensor(positions), 3)


def test_a_run_that_goes_on_needs_a_sum() -> None:
    with pytest.raises(AssertionError, match="whose sum is needed"):
        sentence_means(torch.ones(2, WIDTH), packed([0, 4], [1, 1], 3))


def test_gradients() -> None:
    rows_TD = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    runs = runs_of_positions(torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3]), 3)
    assert torch.autograd.gradcheck(lambda rows: sentence_means(rows, runs)[0], (rows_TD,))


def test_a_row_gets_its_share_of_every_mean_that_it_counts_in() -> None:
    rows_TD = torch.ones(4, 1, requires_grad=True)
    sentence_means(rows_TD, runs_of_positions(torch.arange(4), 2))[0].sum().backward()
    assert rows_TD.grad is not None
    # means: x0, (x0 + x1) / 2 three times
    assert rows_TD.grad.flatten().tolist() == [2.5, 1.5, 0.0, 0.0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_one_sequence_spoils_no_other(value: float) -> None:
    rows_TD = torch.randn(12, WIDTH, dtype=torch.float64)
    positions_T = torch.cat([torch.arange(5), torch.arange(4), torch.arange(3)])
    runs = runs_of_positions(positions_T, 3)
    clean_TD, _ = sentence_means(rows_TD, runs)
    rows_TD[5:9] = value
    means_TD, _ = sentence_means(rows_TD, runs)
    assert torch.equal(means_TD[:5], clean_TD[:5])
    assert torch.equal(means_TD[9:], clean_TD[9:])
    assert not means_TD[5:9].isclose(clean_TD[5:9]).any()


def test_rows_that_do_not_count_do_not_matter() -> None:
    rows_TD = torch.randn(6, WIDTH)
    runs = runs_of_positions(torch.arange(6), 2)
    clean_TD, sums_RD = sentence_means(rows_TD, runs)
    rows_TD[2:] = torch.nan
    assert torch.equal(sentence_means(rows_TD, runs)[0], clean_TD)
    assert torch.equal(sentence_means(rows_TD, runs)[1], sums_RD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_means_have_the_rows_dtype_and_sums_their_own(dtype: torch.dtype) -> None:
    means_TD, sums_RD = sentence_means(torch.ones(300, WIDTH, dtype=dtype), packed([0], [300], 300))
    assert means_TD.dtype == dtype
    assert torch.equal(means_TD, torch.ones_like(means_TD)), "bfloat16 itself cannot count beyond 256"
    assert sums_RD.dtype == SUM_DTYPE
    assert sums_RD.tolist() == [[300.0] * WIDTH]


def test_sequences_that_have_been_decided_are_only_divided() -> None:
    runs = packed([7, 3], [1, 1], 3)
    assert not runs.any_counted
    assert not runs.passes
    carried_RD = torch.tensor([[3.0], [6.0]], dtype=SUM_DTYPE)
    means_TD, sums_RD = sentence_means(torch.full((2, 1), torch.nan), runs, carried_RD)
    assert means_TD.tolist() == [[1.0], [2.0]]
    assert torch.equal(sums_RD, carried_RD)
