"""Which samples a step sees: a function of the seed and of how many were seen, never of how many workers there are.

Training reads an endless line of samples: a permutation of all of them for epoch 0, another for epoch 1, and so on. A
step takes the next `batch_size` of it, and each worker a part of those. Whoever resumes, with as many workers and as
large a batch as they like, goes on where the line was left.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far training has come in the line of samples: what a checkpoint saves."""

    samples_seen: int = 0

    def after(self, batch_size: int) -> "Cursor":
        """The cursor after a step of `batch_size` samples."""
        return Cursor(self.samples_seen + batch_size)

    def epoch(self, num_samples: int) -> int:
        """The epoch that the next sample belongs to."""
        return self.samples_seen // num_samples


def part(total: int, rank: int, world_size: int) -> range:
    """The contiguous part of `total` items that one of `world_size` workers takes; sizes differ by at most one.

    Example: 10 items for 4 workers are 0..2, 2..5, 5..7 and 7..10.
    """
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    return range(total * rank // world_size, total * (rank + 1) // world_size)


def permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's samples [num_samples].

    It sorts by the generator's raw bits: numpy promises them to stay what they are, but not what it shuffles by them.
    """
    keys = Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_samples)
    return np.argsort(keys, kind="stable")


class SampleOrder:
    """The endless line of samples. It keeps the permutation of one epoch: 8 bytes a sample.

    Args:
        num_samples: How many there are; at least 1.
        seed: 0 to MAX_SEED; another seed, another order.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        assert num_samples > 0, "an order needs samples"
        assert 0 <= seed <= MAX_SEED, f"seed {seed}"
        self.num_samples = num_samples
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def samples(self, places: range) -> NDArray[np.int64]:
        """The samples at contiguous places of the line [len(places)], across epochs where need be.

        Example: with 10 samples, places 8..12 are the last two of epoch 0 and the first two of epoch 1.
        """
        assert places.step == 1
        pieces = [np.empty(0, np.int64)]
        place = places.start
        while place < places.stop:
            epoch, first = divmod(place, self.num_samples)
            count = min(places.stop - place, self.num_samples - first)
            pieces.append(self._order(epoch)[first : first + count])
            place += count
        return np.concatenate(pieces)

    def batch(self, cursor: Cursor, batch_size: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """The samples that one worker takes in the step at `cursor`; all workers' parts in turn are the whole batch.

        Args:
            cursor: Where the step starts.
            batch_size: The samples of all workers together; at least `world_size`.
            rank: This worker.
            world_size: How many there are.
        """
        assert batch_size >= world_size, f"{batch_size} samples for {world_size} workers"
        mine = part(batch_size, rank, world_size)
        return self.samples(range(cursor.samples_seen + mine.start, cursor.samples_seen + mine.stop))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._permutation, self._epoch = permutation(self.num_samples, self.seed, epoch), epoch
        return self._permutation
