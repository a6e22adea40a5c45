"""Which samples a step sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.cursor import MAX_SEED, Cursor, SampleOrder, part, permutation

SEEDS = st.integers(0, MAX_SEED)
STEPS = st.lists(
    st.integers(1, 7).flatmap(lambda workers: st.tuples(st.just(workers), st.integers(workers, 40))),
    min_size=1,
    max_size=30,
)


@given(num_samples=st.integers(1, 60), seed=SEEDS, steps=STEPS)
def test_whoever_takes_part_every_sample_is_seen_once_in_each_epoch(
    num_samples: int, seed: int, steps: list[tuple[int, int]]
) -> None:
    cursor, seen = Cursor(), list[int]()
    for workers, batch_size in steps:  # each step may be the first after a resume: nothing is kept but the cursor
        for rank in range(workers):
            order = SampleOrder(num_samples, seed)
            seen += order.batch(Cursor(cursor.samples_seen), batch_size, rank, workers).tolist()
        cursor = cursor.after(batch_size)
    assert len(seen) == cursor.samples_seen == sum(batch_size for _, batch_size in steps)
    for start in range(0, len(seen), num_samples):
        epoch = seen[start : start + num_samples]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == num_samples:
            assert sorted(epoch) == list(range(num_samples))
    assert seen == SampleOrder(num_samples, seed).samples(range(cursor.samples_seen)).tolist()
    assert cursor.epoch(num_samples) == len(seen) // num_samples


@given(total=st.integers(0, 500), world_size=st.integers(1, 60))
def test_parts_are_contiguous_and_as_equal_as_can_be(total: int, world_size: int) -> None:
    parts = [part(total, rank, world_size) for rank in range(world_size)]
    assert [each for its in parts for each in its] == list(range(total))
    sizes = [len(each) for each in parts]
    assert max(sizes) - min(sizes) <= 1


@given(num_samples=st.integers(0, 200), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(num_samples, seed, epoch)) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_that_of_every_release() -> None:
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_a_first_sample_is_as_likely_as_another(seed: int) -> None:
    firsts = [permutation(4, seed, epoch)[0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=4)
    assert counts.min() > 400, counts  # 500 expected; 400 is more than five standard deviations away


def test_going_back_an_epoch_gives_the_same(seed: int) -> None:
    order = SampleOrder(10, seed)
    first = order.samples(range(5, 25)).tolist()
    assert order.samples(range(5, 25)).tolist() == first


@pytest.mark.parametrize(("rank", "expected"), [(0, (0, 2)), (1, (2, 5)), (2, (5, 7)), (3, (7, 10))])
def test_the_example(rank: int, expected: tuple[int, int]) -> None:
    assert part(10, rank, 4) == range(*expected)
