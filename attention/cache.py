"""The rolling key/value cache: position i of a sequence lives in ring slot i mod W, in blocks allocated as it grows.

Shapes: T rows, N = T * 2G heads written, B sequences, G key/value heads, S head dim, W window,
L = num_blocks * block_size gathered slots.
A lane is one sequence's place among those that run. Block 0 is never allocated: it pads block tables and stays zero.

Worked example, W = 6, block_size = 4, so a ring of 2 blocks: positions 0..3 go to slots 0..3 in the first block,
4 and 5 to slots 4 and 5 in the second, and position 6 to slot 0 again, over position 0, which no later query may see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
DEFAULT_BLOCK_SIZE = 64


@dataclass(frozen=True)
class CacheShape:
    """What a cache holds: `window` positions at most of each sequence, in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    window: int
    block_size: int = DEFAULT_BLOCK_SIZE

    @property
    def blocks_per_sequence(self) -> int:
        """The blocks of a full ring."""
        return -(-self.window // self.block_size)

    def num_blocks_for(self, num_positions: int) -> int:
        """Returns the blocks that a sequence of `num_positions` holds."""
        return -(-min(num_positions, self.window) // self.block_size)

    def bytes_per_position(self, dtype: torch.dtype) -> int:
        """Returns the memory of one cached position, keys and values of every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


class RollingCache:
    """Block pools of every layer and the block table of every lane.

    Args:
        num_blocks: Blocks that can be allocated (block 0 comes on top).
        num_lanes: Sequences that can run at once.
    """

    def __init__(
        self, shape: CacheShape, num_blocks: int, num_lanes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.device = device
        # Keys and values side by side ([2G, block, S] a block), so that one call writes and one call gathers both.
        # A block is cleared when it is allocated, so host memory is taken only as blocks are used.
        size = (num_blocks + 1, 2 * shape.num_kv_heads, shape.block_size, shape.head_dim)
        self.pools = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        for pool in self.pools:
            pool[0] = 0.0
        self.tables: Ints = np.zeros((num_lanes, shape.blocks_per_sequence), np.int64)
        self._num_held = [0] * num_lanes
        self._free = list(range(num_blocks, 0, -1))

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_tokens(self) -> int:
        """Positions that the allocated blocks can hold."""
        return (self.num_blocks - len(self._free)) * self.shape.block_size

    @property
    def total_tokens(self) -> int:
        return self.num_blocks * self.shape.block_size

    def num_held(self, lane: int) -> int:
        """Returns how many blocks a lane has."""
        return self._num_held[lane]

    def grow(self, lane: int, num_positions: int) -> bool:
        """Makes room for a lane's first `num_positions` positions; False, and nothing changed, if blocks are short."""
        held = self._num_held[lane]
        missing = self.shape.num_blocks_for(num_positions) - held
        if missing <= 0:
            return True
        if missing > len(self._free):
            return False
        blocks = [self._free.pop() for _ in range(missing)]
        # What a block held before must not reach a later owner, not even times zero (NaN * 0 is NaN).
        ids = torch.tensor(blocks, device=self.device)
        for pool in self.pools:
            pool.index_fill_(0, ids, 0.0)
        self.tables[lane, held : held + missing] = blocks
        self._num_held[lane] = held + missing
        return True

    def release(self, lane: int) -> None:
        """Frees a lane's blocks."""
        held = self._num_held[lane]
        self._free.extend(self.tables[lane, :held].tolist()[::-1])
        self.tables[lane, :held] = 0
        self._num_held[lane] = 0

    def places(self, lanes: Ints, positions: Ints) -> Tensor:
        """Returns where the heads of `positions` (of `lanes`, one each) are written, for `write`: [N]."""
        shape = self.shape
        slots = positions % shape.window
        blocks = self.tables[lanes, slots // shape.block_size]
        heads = np.arange(2 * shape.num_kv_heads)
        heads_T2G = (blocks[:, None] * len(heads) + heads) * shape.block_size + (slots % shape.block_size)[:, None]
        return torch.from_numpy(heads_T2G.reshape(-1)).to(self.device)

    def write(self, layer: int, places_N: Tensor, keys_values_TGS: Tensor) -> None:
        """Stores rows [T, 2G, S]: the key heads, then the value heads."""
        head_dim = self.shape.head_dim
        self.pools[layer].view(-1, head_dim).index_copy_(0, places_N, keys_values_TGS.reshape(-1, head_dim))

    def gather_index(self, lanes: Sequence[int] | Ints, num_blocks: int) -> Tensor:
        """Returns what `gather` takes for the first `num_blocks` ring blocks of each lane: keys, then values."""
        heads = np.arange(2 * self.shape.num_kv_heads).reshape(2, 1, -1, 1)
        table = self.tables[np.asarray(lanes), :num_blocks][None, :, None, :]
        index = (table * (2 * self.shape.num_kv_heads) + heads).reshape(-1)
        return torch.from_numpy(index).to(self.device)

    def gather(self, layer: int, index: Tensor, num_lanes: int) -> tuple[Tensor, Tensor]:
        """Returns keys and values, each [B * G, L, S], of the blocks that `gather_index` chose."""
        shape = self.shape
        rows = self.pools[layer].view(-1, shape.block_size, shape.head_dim).index_select(0, index)
        keys, values = rows.view(2, num_lanes * shape.num_kv_heads, -1, shape.head_dim).unbind(0)
        return keys, values

    def check_integrity(self) -> None:
        """Asserts that every block is free or held by exactly one lane, and that block 0 is zero."""
        held = [block for lane, count in enumerate(self._num_held) for block in self.tables[lane, :count].tolist()]
        assert sorted(held + self._free) == list(range(1, self.num_blocks + 1)), "a block is lost or held twice"
        for lane, count in enumerate(self._num_held):
            assert not self.tables[lane, count:].any(), f"lane {lane} has blocks beyond its count"
        assert not any(pool[0].any() for pool in self.pools), "the padding block was written to"
