"""Finding the best tokens through block maxima against a plain stable sort."""

import tracemalloc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.vocabulary import BlockedLogits, best_tokens


def make_rows(seed: int, num_rows: int, vocab_size: int, num_levels: int) -> np.ndarray:
    """Logits with many equal ones, of both signs, and some -inf."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(-num_levels, num_levels, (num_rows, vocab_size)).astype(np.float32) / 4
    rows[generator.random(rows.shape) < 0.1] = -np.inf
    rows[generator.random(rows.shape) < 0.1] = -0.0
    return rows


ROWS = (st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 300), st.sampled_from([2, 20, 1000]))


@settings(max_examples=100, deadline=None)
@given(*ROWS, st.integers(1, 320))
def test_largest_is_a_stable_sort(seed: int, num_rows: int, vocab_size: int, num_levels: int, count: int) -> None:
    rows = make_rows(seed, num_rows, vocab_size, num_levels)
    found = BlockedLogits.of(torch.from_numpy(rows)).largest(count)
    order = np.argsort(-rows, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(found.ids_RM, order)
    np.testing.assert_array_equal(found.values_RM, np.take_along_axis(rows, order, axis=-1))


@settings(max_examples=100, deadline=None)
@given(*ROWS)
def test_reaching_finds_exactly_what_reaches_the_floor(
    seed: int, num_rows: int, vocab_size: int, num_levels: int
) -> None:
    rows = make_rows(seed, num_rows, vocab_size, num_levels)
    floors = np.random.default_rng(seed + 1).choice(np.array([-1, 0, 0.25, 900], dtype=np.float32), num_rows)
    found = BlockedLogits.of(torch.from_numpy(rows)).reaching(floors)
    for row in range(num_rows):
        wanted = np.flatnonzero(rows[row] >= floors[row])
        assert sorted(found.ids_RM[row][found.values_RM[row] > -np.inf].tolist()) == wanted.tolist()


def test_best_token_is_the_first_of_equals_and_nan_counts_as_the_largest() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.tensor([[0.0, 2.0, 2.0], [9.0, float("nan"), 1.0]], dtype=dtype)
        ids, values = best_tokens(rows)
        assert ids.tolist() == [1, 1]
        assert values[0] == 2.0
        assert np.isnan(values[1])


@settings(max_examples=100, deadline=None)
@given(*ROWS)
def test_counts_what_is_above_a_token(seed: int, num_rows: int, vocab_size: int, num_levels: int) -> None:
    rows = make_rows(seed, num_rows, vocab_size, num_levels)
    ids = np.random.default_rng(seed + 1).integers(0, vocab_size, num_rows)
    chosen = rows[np.arange(num_rows), ids]
    counted = BlockedLogits.of(torch.from_numpy(rows)).count_above(chosen)
    np.testing.assert_array_equal(counted, (rows > chosen[:, None]).sum(axis=-1))


def test_improbable_tokens_are_ranked_without_listing_all_better_ones() -> None:
    """A client may ask for the ranks of thousands of them: a list takes dozens of bytes for each better token."""
    num_rows, vocab_size = 64, 4096
    rows = np.random.default_rng(7).standard_normal((num_rows, vocab_size)).astype(np.float32)
    blocked = BlockedLogits.of(torch.from_numpy(rows))
    tracemalloc.start()
    try:
        counted = blocked.count_above(rows.min(axis=-1))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (counted == vocab_size - 1).all()
    assert peak_bytes < 2 * rows.size
