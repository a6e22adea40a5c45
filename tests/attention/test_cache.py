"""The rolling cache against a naive one: a dictionary per lane, position i under the key i mod W."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention.cache import CacheShape, RollingCache

HEADS, HEAD_DIM, LAYERS = 2, 2, 2
CPU = torch.device("cpu")


class NaiveLane:
    """What one lane should hold."""

    def __init__(self) -> None:
        self.num_written = 0
        self.slots: dict[int, float] = {}


class Pair:
    """The cache under test beside naive lanes; every value ever written is different."""

    def __init__(self, shape: CacheShape, num_blocks: int, num_lanes: int) -> None:
        self.cache = RollingCache(shape, num_blocks, num_lanes, torch.float32, CPU)
        self.shape = shape
        self.lanes = [NaiveLane() for _ in range(num_lanes)]
        self._next_value = 1.0

    def append(self, lane: int, count: int) -> bool:
        """Grows a lane by `count` positions and writes them; False if there is no memory for them."""
        naive, shape = self.lanes[lane], self.shape
        before = [self.cache.num_held(lane) for lane in range(len(self.lanes))]
        if not self.cache.grow(lane, naive.num_written + count):
            assert [self.cache.num_held(lane) for lane in range(len(self.lanes))] == before
            return False
        kept = np.arange(naive.num_written + max(0, count - shape.window), naive.num_written + count)
        values_T = torch.arange(len(kept), dtype=torch.float32) + self._next_value
        self._next_value += len(kept)
        places = self.cache.places(np.full(len(kept), lane), kept)
        for layer in range(LAYERS):
            self.cache.write(layer, places, self._rows(layer, values_T))
        for position, value in zip(kept.tolist(), values_T.tolist(), strict=True):
            naive.slots[position % shape.window] = value
        naive.num_written += count
        return True

    def release(self, lane: int) -> None:
        """Frees a lane, and poisons every block that is free then."""
        self.cache.release(lane)
        self.lanes[lane] = NaiveLane()
        free = self.free_blocks()
        for pool in self.cache.pools:
            pool[free] = float("nan")

    def free_blocks(self) -> list[int]:
        held = {int(b) for lane in range(len(self.lanes)) for b in self.cache.tables[lane, : self.cache.num_held(lane)]}
        return [block for block in range(1, self.cache.num_blocks + 1) if block not in held]

    def _rows(self, layer: int, values_T: torch.Tensor) -> torch.Tensor:
        """[T, 2G, S]: each head, of keys and of values, gets a multiple of its own."""
        scale = torch.arange(1, 2 * HEADS * HEAD_DIM + 1).view(1, 2 * HEADS, HEAD_DIM) * (layer + 1)
        return values_T.view(-1, 1, 1) * scale

    def check(self) -> None:
        """Compares every lane, alone and padded to the longest."""
        self.cache.check_integrity()
        lanes = list(range(len(self.lanes)))
        for lane in lanes:
            assert self.cache.num_held(lane) == self.shape.num_blocks_for(self.lanes[lane].num_written)
            assert self.cache.num_held(lane) <= self.shape.blocks_per_sequence
            self._check_gathered([lane], self.cache.num_held(lane))
        self._check_gathered(lanes, max(self.cache.num_held(lane) for lane in lanes))

    def _check_gathered(self, lanes: list[int], num_blocks: int) -> None:
        expected = torch.zeros(len(lanes), num_blocks * self.shape.block_size)
        for row, lane in enumerate(lanes):
            for slot, value in self.lanes[lane].slots.items():
                expected[row, slot] = value
        index = self.cache.gather_index(lanes, num_blocks)
        for layer in range(LAYERS):
            # [lanes, L, 2G, S] -> what gather gives: keys and values, each [lanes * G, L, S]
            rows = self._rows(layer, expected.flatten()).view(len(lanes), -1, 2, HEADS, HEAD_DIM)
            wanted = rows.permute(2, 0, 3, 1, 4).reshape(2, len(lanes) * HEADS, -1, HEAD_DIM)
            keys, values = self.cache.gather(layer, index, len(lanes))
            torch.testing.assert_close(keys, wanted[0], rtol=0, atol=0)
            torch.testing.assert_close(values, wanted[1], rtol=0, atol=0)


ACTIONS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=30)  # (lane, count); 0 releases


@given(window=st.integers(1, 20), block_size=st.integers(1, 9), num_blocks=st.integers(1, 12), actions=ACTIONS)
def test_holds_the_last_window_of_each_lane(
    window: int, block_size: int, num_blocks: int, actions: list[tuple[int, int]]
) -> None:
    pair = Pair(CacheShape(LAYERS, HEADS, HEAD_DIM, window, block_size), num_blocks, 3)
    for lane, count in actions:
        if count:
            pair.append(lane, count)
        else:
            pair.release(lane)
        pair.check()
    for lane in range(3):
        pair.release(lane)
    assert pair.cache.num_free_blocks == num_blocks
    assert pair.cache.used_tokens == 0


def test_the_worked_example() -> None:
    """W = 6, blocks of 4: positions 0..3 in the first block, 4 and 5 in the second, 6 over position 0."""
    cache = RollingCache(CacheShape(1, 1, 1, window=6, block_size=4), 2, 1, torch.float32, CPU)
    assert cache.grow(0, 7)
    first, second = cache.tables[0].tolist()
    places = cache.places(np.zeros(7, np.int64), np.arange(7))
    blocks = [first] * 4 + [second] * 2 + [first]
    offsets = [0, 1, 2, 3, 0, 1, 0]
    key_heads = [block * 2 * 4 + offset for block, offset in zip(blocks, offsets, strict=True)]
    value_heads = [place + 4 for place in key_heads]
    assert places.view(7, 2).T.tolist() == [key_heads, value_heads]


def test_blocks_come_as_a_sequence_grows() -> None:
    cache = RollingCache(CacheShape(1, 1, 1, window=100, block_size=10), 20, 2, torch.float32, CPU)
    for length, held in [(1, 1), (10, 1), (11, 2), (99, 10), (100, 10), (101, 10), (100_000, 10)]:
        assert cache.grow(0, length)
        assert cache.num_held(0) == held
    assert (cache.num_free_blocks, cache.used_tokens, cache.total_tokens) == (10, 100, 200)


def test_memory_of_a_position() -> None:
    shape = CacheShape(num_layers=3, num_kv_heads=2, head_dim=8, window=64)
    assert shape.bytes_per_position(torch.bfloat16) == 2 * 3 * 2 * 8 * 2
    assert shape.bytes_per_position(torch.float32) == 2 * 3 * 2 * 8 * 4


@pytest.mark.parametrize("damage", ["lost", "twice", "padding"])
def test_integrity_check_notices(damage: str) -> None:
    cache = RollingCache(CacheShape(1, 1, 1, window=8, block_size=4), 4, 2, torch.float32, CPU)
    assert cache.grow(0, 8)
    assert cache.grow(1, 4)
    cache.check_integrity()
    if damage == "lost":
        cache.tables[1, 0] = 0
    elif damage == "twice":
        cache.tables[1, 0] = cache.tables[0, 0]
    else:
        cache.pools[0][0] = 1.0
    with pytest.raises(AssertionError):
        cache.check_integrity()
