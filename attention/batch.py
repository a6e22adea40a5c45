"""The tensors of one engine step, made once and used by every layer.

T rows: decoding sequences first (one row each), then the prefill chunks, one after the other.
N = T * 2G written heads, B sequences of a decode group, L gathered ring slots, W window, Q queries of a chunk.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attention.cache import CacheShape, Ints, RollingCache
from attention.scheduler import Chunk, StepPlan
from attention.sequence import Sequence


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decoding sequences whose rings are about equally full: rows [start, stop), attended together.

    Args:
        index: For `RollingCache.gather`.
        num_slots: Gathered slots that the fullest ring has filled.
        bias_B1L: Minus infinity where a gathered slot holds nothing of its sequence, else 0; None for one sequence.
    """

    start: int
    stop: int
    index: Tensor
    num_slots: int
    bias_B1L: Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One chunk: rows [start, stop).

    Args:
        index: For `RollingCache.gather` of what is cached before the chunk; None when nothing is.
        visible_QL: True where a query sees a key, the cached ones first; None: plain causal, nothing cached.
    """

    start: int
    stop: int
    index: Tensor | None
    visible_QL: Tensor | None


@dataclass(slots=True)
class Batch:
    """Everything that a step's layers need besides the rows.

    Args:
        places_N: Where each row's keys and values go; of a chunk longer than the window only the last W rows are kept.
        kept: The rows that are written, or None when all are.
        num_positions: One more than the highest position in the step.
    """

    ids_T: Tensor
    positions_T: Tensor
    num_positions: int
    places_N: Tensor
    kept: Tensor | None
    decode: list[DecodeGroup] = field(default_factory=list[DecodeGroup])
    prefill: list[PrefillSpan] = field(default_factory=list[PrefillSpan])


def build_batch(plan: StepPlan, cache: RollingCache) -> Batch:
    """Returns the tensors of a step whose sequences have lanes and blocks.

    `plan.decode` is sorted by how full the rings are, so that groups are neighbouring rows.
    """
    plan.decode.sort(key=lambda sequence: sequence.num_cached)
    ids, positions, lanes = _rows(plan)
    kept = _kept_rows(plan, cache.shape.window)
    written = slice(None) if kept is None else kept
    device = cache.device
    batch = Batch(
        ids_T=torch.from_numpy(ids).to(device),
        positions_T=torch.from_numpy(positions).to(device),
        num_positions=int(positions.max()) + 1,
        places_N=cache.places(lanes[written], positions[written]),
        kept=None if kept is None else torch.from_numpy(kept).to(device),
    )
    num_decode = len(plan.decode)
    if num_decode:
        batch.decode = _decode_groups(lanes[:num_decode], positions[:num_decode], cache)
    start = num_decode
    for chunk in plan.prefill:
        batch.prefill.append(_prefill_span(chunk, start, cache))
        start += chunk.count
    return batch


def _rows(plan: StepPlan) -> tuple[Ints, Ints, Ints]:
    """Returns the id, position and lane of every row."""
    decode = plan.decode
    ids: list[int] = [sequence.ids[-1] for sequence in decode]
    positions: list[Ints] = [np.array([sequence.num_cached for sequence in decode], np.int64)]
    lanes: list[Ints] = [np.array([sequence.lane for sequence in decode], np.int64)]
    for chunk in plan.prefill:
        sequence, first = chunk.sequence, chunk.sequence.num_cached
        ids.extend(sequence.ids[first : first + chunk.count])
        positions.append(np.arange(first, first + chunk.count))
        lanes.append(np.full(chunk.count, sequence.lane))
    return np.array(ids, np.int64), np.concatenate(positions), np.concatenate(lanes)


def _kept_rows(plan: StepPlan, window: int) -> Ints | None:
    if all(chunk.count <= window for chunk in plan.prefill):
        return None
    kept = [np.arange(len(plan.decode))]
    start = len(plan.decode)
    for chunk in plan.prefill:
        kept.append(np.arange(start + max(0, chunk.count - window), start + chunk.count))
        start += chunk.count
    return np.concatenate(kept)


def _decode_groups(lanes: Ints, positions: Ints, cache: RollingCache) -> list[DecodeGroup]:
    """Cuts decode rows (sorted by position) where the number of blocks passes a power of two.

    A group gathers as many blocks as its fullest ring holds, so no ring is padded to more than twice its size.
    """
    shape = cache.shape
    lengths = np.minimum(positions + 1, shape.window)
    blocks = -(-lengths // shape.block_size)
    sizes = np.ceil(np.log2(blocks)).astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(lanes)]
    groups: list[DecodeGroup] = []
    for start, stop in itertools.pairwise(cuts):
        num_blocks = int(blocks[stop - 1])
        index = cache.gather_index(lanes[start:stop], num_blocks)
        bias = None if stop - start == 1 else _bias(lengths[start:stop], num_blocks, cache)
        groups.append(DecodeGroup(start, stop, index, int(lengths[stop - 1]), bias))
    return groups


def _bias(lengths: Ints, num_blocks: int, cache: RollingCache) -> Tensor:
    hidden = torch.from_numpy(np.arange(num_blocks * cache.shape.block_size) >= lengths[:, None, None])
    bias = torch.zeros(hidden.shape, dtype=cache.dtype).masked_fill_(hidden, float("-inf"))
    return bias.to(cache.device)


def _prefill_span(chunk: Chunk, start: int, cache: RollingCache) -> PrefillSpan:
    cached, count, shape = chunk.sequence.num_cached, chunk.count, cache.shape
    if cached == 0 and count <= shape.window:
        return PrefillSpan(start, start + count, None, None)
    num_blocks = shape.num_blocks_for(cached)
    index = cache.gather_index([chunk.sequence.lane], num_blocks) if cached else None
    key_positions = np.concatenate([_ring_positions(cached, num_blocks, shape), np.arange(cached, cached + count)])
    queries = np.arange(cached, cached + count)[:, None]
    visible = (key_positions <= queries) & (key_positions > queries - shape.window) & (key_positions >= 0)
    return PrefillSpan(start, start + count, index, torch.from_numpy(visible).to(cache.device))


def _ring_positions(cached: int, num_blocks: int, shape: CacheShape) -> Ints:
    """Returns the position that each gathered slot holds once `cached` positions have been written; -1: none.

    Example, W = 4, 6 positions cached: slots hold 4, 5, 2, 3.
    """
    slots = np.arange(num_blocks * shape.block_size)
    positions = slots + (cached - 1 - slots) // shape.window * shape.window
    return np.where(slots < min(cached, shape.window), positions, -1)


def sampled_rows(plan: StepPlan) -> tuple[list[int], list[Sequence]]:
    """Returns the rows whose next token is to be drawn, and the sequences they belong to."""
    rows, sequences = list(range(len(plan.decode))), list(plan.decode)
    end = len(plan.decode)
    for chunk in plan.prefill:
        end += chunk.count
        if chunk.last:
            rows.append(end - 1)
            sequences.append(chunk.sequence)
    return rows, sequences
