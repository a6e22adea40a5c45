"""The counter-based generator: known answers, independence of rows, and sanity of its statistics."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attention.randomness import random_words, stream_state, uniforms

SEEDS = st.integers(0, 2**64 - 1)


def test_known_answers_of_splitmix64() -> None:
    # The published first outputs for seed 1234567.
    states = np.full(5, 1234567, dtype=np.uint64)
    assert random_words(states, np.arange(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2**40)), min_size=1, max_size=20))
def test_a_row_does_not_depend_on_the_others(rows: list[tuple[int, int]]) -> None:
    states = np.array([stream_state(seed) for seed, _ in rows], dtype=np.uint64)
    positions = np.array([position for _, position in rows], dtype=np.int64)
    together = uniforms(states, positions)
    alone = [uniforms(states[i : i + 1], positions[i : i + 1])[0] for i in range(len(rows))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def _stream(seed: int, num: int) -> np.ndarray:
    return uniforms(np.full(num, stream_state(seed), dtype=np.uint64), np.arange(num))


def _check_uniform(numbers: np.ndarray, num_bins: int = 100) -> None:
    expected = len(numbers) / num_bins
    counts = np.histogram(numbers, num_bins, (0.0, 1.0))[0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - (num_bins - 1)) < 5 * np.sqrt(2 * (num_bins - 1)), statistic


def test_uniform_along_a_stream_and_across_neighbouring_seeds() -> None:
    num = 100_000
    _check_uniform(_stream(0, num))
    _check_uniform(_stream(2**64 - 1, num))
    states = np.array([stream_state(seed) for seed in range(num)], dtype=np.uint64)
    for position in (0, 1, 1000):
        _check_uniform(uniforms(states, np.full(num, position)))


def test_neighbours_are_uncorrelated() -> None:
    num = 100_000
    bound = 5 / np.sqrt(num)
    first, second = _stream(7, num), _stream(8, num)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first[:-1], second[1:])[0, 1]) < bound


def test_seeds_do_not_share_their_streams() -> None:
    words = np.concatenate([_stream(seed, 1000) for seed in range(100)])
    assert len(np.unique(words)) == len(words)
