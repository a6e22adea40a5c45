"""A step's tensors and attention, against sequences kept whole: every query sees its last W positions and nothing else.

T rows, H query heads, G key/value heads, S head dim, W window.
"""

import itertools
from dataclasses import dataclass
from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attention.attend import FEW_SEQUENCES, attend
from attention.batch import Batch, build_batch, sampled_rows
from attention.cache import CacheShape, RollingCache
from attention.scheduler import Chunk, StepPlan
from attention.sequence import Sequence
from protos.generation_pb2 import Sampling

GROUPS, HEAD_DIM, LAYERS = 2, 4, 2
CPU = torch.device("cpu")


@dataclass
class Whole:
    """One sequence and everything that was ever computed of it, by layer: [T, 2G, S]."""

    sequence: Sequence
    keys_values: list[Tensor]


def naive_attention(query_HS: Tensor, keys_values_TGS: Tensor, window: int) -> Tensor:
    """One query, that of the last row, over the last `window` rows. Returns [H * S]."""
    recent = keys_values_TGS[-window:].double()
    repeats = query_HS.shape[0] // GROUPS
    keys_THS = recent[:, :GROUPS].repeat_interleave(repeats, 1)
    values_THS = recent[:, GROUPS:].repeat_interleave(repeats, 1)
    scores_HT = torch.einsum("hs,ths->ht", query_HS.double(), keys_THS) * HEAD_DIM**-0.5
    return torch.einsum("ht,ths->hs", scores_HT.softmax(-1), values_THS).flatten()


class Steps:
    """Plays steps of a few sequences, computing each attention twice."""

    def __init__(self, window: int, block_size: int, num_heads: int, num_sequences: int, seed: int) -> None:
        shape = CacheShape(LAYERS, GROUPS, HEAD_DIM, window, block_size)
        num_blocks = num_sequences * shape.blocks_per_sequence
        self.cache = RollingCache(shape, num_blocks, num_sequences, torch.float32, CPU)
        for pool in self.cache.pools:
            pool[1:] = float("nan")  # what earlier owners left
        self._num_heads = num_heads
        self.num_checked = 0
        """Rows compared with the naive attention, in all layers."""
        self._generator = torch.Generator().manual_seed(seed)
        self.wholes = [self._start(lane) for lane in range(num_sequences)]

    def _start(self, lane: int) -> Whole:
        sequence = Sequence(lane, [], 0, Sampling(), 1, arrival_s=0.0, lane=lane)
        return Whole(sequence, [torch.empty(0, 2 * GROUPS, HEAD_DIM) for _ in range(LAYERS)])

    def step(self, counts: list[int], *, decode_single: bool) -> None:
        """Computes so many more tokens of each sequence; 0 leaves it out, 1 decodes it (or is a chunk of one)."""
        plan = StepPlan()
        for whole, count in zip(self.wholes, counts, strict=True):
            if count == 0:
                continue
            sequence = whole.sequence
            sequence.ids.extend(range(len(sequence.ids), len(sequence.ids) + count))
            assert self.cache.grow(sequence.lane, sequence.num_cached + count)
            if count == 1 and decode_single:
                plan.decode.append(sequence)
            else:
                plan.prefill.append(Chunk(sequence, count, True))
        if plan:
            self._compute(plan)

    def _compute(self, plan: StepPlan) -> None:
        batch = build_batch(plan, self.cache)
        rows = [(sequence, 1) for sequence in plan.decode] + [(c.sequence, c.count) for c in plan.prefill]
        positions = [sequence.num_cached + i for sequence, count in rows for i in range(count)]
        assert batch.positions_T.tolist() == positions
        assert batch.ids_T.tolist() == positions  # ids were chosen so
        assert batch.num_positions == max(positions) + 1
        written = batch.places_N.tolist()
        assert len(set(written)) == len(written), "two rows are written to one slot: which one stays is undefined"
        for layer in range(LAYERS):
            self._check_layer(layer, batch, rows)
        for sequence, count in rows:
            sequence.num_cached += count

    def _check_layer(self, layer: int, batch: Batch, rows: list[tuple[Sequence, int]]) -> None:
        num_rows = sum(count for _, count in rows)
        query_THS = torch.randn(num_rows, self._num_heads, HEAD_DIM, generator=self._generator)
        new_TGS = torch.randn(num_rows, 2 * GROUPS, HEAD_DIM, generator=self._generator)
        got = attend(layer, batch, self.cache, query_THS, new_TGS)
        row = 0
        for sequence, count in rows:
            whole = self.wholes[sequence.lane]
            for _ in range(count):
                history = torch.cat((whole.keys_values[layer], new_TGS[row : row + 1]))
                whole.keys_values[layer] = history
                expected = naive_attention(query_THS[row], history, self.cache.shape.window)
                torch.testing.assert_close(got[row].double(), expected, rtol=1e-4, atol=1e-5)
                self.num_checked += 1
                row += 1


@given(
    window=st.integers(1, 12),
    block_size=st.integers(1, 5),
    repeats=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.sampled_from([0, 1, 7])), max_size=8),
    decode_single=st.booleans(),
    few_sequences=st.sampled_from([1, FEW_SEQUENCES]),
    seed=st.integers(0, 2**31),
)
def test_every_query_sees_its_last_window(
    window: int,
    block_size: int,
    repeats: int,
    steps: list[tuple[int, int, int]],
    decode_single: bool,
    few_sequences: int,
    seed: int,
) -> None:
    """With `few_sequences` 1, groups of two and more take the way of large groups."""
    play = Steps(window, block_size, GROUPS * repeats, 4, seed)
    num_rows = 0
    with patch("attention.attend.FEW_SEQUENCES", few_sequences):
        for lane, count, others in steps:
            counts = [count if index == lane else min(others, index) for index in range(4)]
            play.step(counts, decode_single=decode_single)
            play.step([1, 1, 0, 1], decode_single=decode_single)
            num_rows += sum(counts) + 3
    assert play.num_checked == LAYERS * num_rows
    play.cache.check_integrity()


@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=12), window=st.integers(1, 500))
def test_decoding_rings_are_padded_at_most_twofold(lengths: list[int], window: int) -> None:
    shape = CacheShape(1, 1, 1, window, min(8, window))
    cache = RollingCache(shape, len(lengths) * shape.blocks_per_sequence, len(lengths), torch.float32, CPU)
    plan = StepPlan()
    for lane, length in enumerate(lengths):
        assert cache.grow(lane, length)
        ids = [lane] * length
        plan.decode.append(Sequence(lane, ids, 1, Sampling(), 1, 0.0, lane=lane, num_cached=length - 1))
    batch = build_batch(plan, cache)
    covered: list[int] = []
    for group in batch.decode:
        members = plan.decode[group.start : group.stop]
        covered.extend(range(group.start, group.stop))
        num_blocks = group.index.numel() // (2 * len(members))
        for sequence in members:
            assert shape.num_blocks_for(len(sequence.ids)) <= num_blocks <= 2 * cache.num_held(sequence.lane)
    assert covered == list(range(len(lengths)))
    assert batch.ids_T.tolist() == [sequence.lane for sequence in plan.decode], "rows follow the plan's new order"


def test_rows_whose_next_token_is_drawn() -> None:
    decoding = [Sequence(key, [1, 2], 1, Sampling(), 1, 0.0) for key in range(2)]
    filling = [Sequence(key, [1] * 9, 9, Sampling(), 1, 0.0) for key in range(2, 5)]
    chunks = [Chunk(filling[0], 4, False), Chunk(filling[1], 9, True), Chunk(filling[2], 2, False)]
    rows, sequences = sampled_rows(StepPlan(decoding, chunks))
    assert rows == [0, 1, 2 + 4 + 9 - 1]
    assert sequences == [*decoding, filling[1]]


def test_chunks_around_the_window() -> None:
    """Every pair of a first and a second chunk, then a decoded token, for a window of 4 in blocks of 3."""
    for first, second in itertools.product(range(1, 11), range(11)):
        play = Steps(4, 3, GROUPS, 1, seed=first * 100 + second)
        play.step([first], decode_single=False)
        play.step([second], decode_single=False)
        play.step([1], decode_single=True)
        assert play.num_checked == LAYERS * (first + second + 1)
