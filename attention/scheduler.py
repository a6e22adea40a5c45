"""Continuous batching with a token budget: which tokens the next engine step computes. Pure: no time, no tensors.

Each step takes one token of every decoding sequence, then prefill chunks, first come first served, up to the budget,
so that a long prompt advances by a chunk a step and never stalls the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from attention.sequence import NO_LANE, Sequence
from attention.waiting import WaitingQueue


@dataclass(frozen=True)
class SchedulerLimits:
    """The YAML's `attention` section, resolved.

    Args:
        prefill_chunk: Tokens of one prompt in one step, at most.
        max_batch_tokens: Tokens of one step, at most (decoding sequences always fit).
        max_sequences: Sequences that run at once, at most.
        max_queued: Sequences that wait, at most.
    """

    prefill_chunk: int
    max_batch_tokens: int
    max_sequences: int
    max_queued: int


class Memory(Protocol):
    """What the scheduler needs to know of the cache."""

    @property
    def num_free_blocks(self) -> int: ...

    def grow(self, lane: int, num_positions: int) -> bool: ...

    def release(self, lane: int) -> None: ...

    def num_held(self, lane: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence, from its first one that is not cached; `last`: its next token can then be drawn."""

    sequence: Sequence
    count: int
    last: bool


@dataclass(slots=True)
class StepPlan:
    """What one engine step computes: decoding sequences (one token each) and prefill chunks."""

    decode: list[Sequence] = field(default_factory=list[Sequence])
    prefill: list[Chunk] = field(default_factory=list[Chunk])

    @property
    def sequences(self) -> list[Sequence]:
        return self.decode + [chunk.sequence for chunk in self.prefill]

    def __bool__(self) -> bool:
        return bool(self.decode or self.prefill)


class Scheduler:
    """Holds every sequence of a node: waiting, or running in a lane.

    Args:
        blocks_for: Cache blocks that a sequence of so many positions holds.
    """

    def __init__(self, limits: SchedulerLimits, memory: Memory, blocks_for: Callable[[int], int]) -> None:
        self.limits = limits
        self._memory = memory
        self._blocks_for = blocks_for
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self._free_lanes = list(range(limits.max_sequences - 1, -1, -1))
        self.num_preemptions = 0

    @property
    def queue_full(self) -> bool:
        """Whether one more sequence would exceed `max_queued`; those that a free lane takes at once do not count."""
        return len(self.waiting) >= self.limits.max_queued + len(self._free_lanes)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees what it held."""
        if sequence.lane == NO_LANE:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._free_lane(sequence)

    def next_step(self) -> StepPlan:
        """Returns the next step; its sequences have lanes and cache blocks for what they compute."""
        self._admit()
        plan = StepPlan()
        budget = self.limits.max_batch_tokens
        for sequence in list(self.running):
            if sequence.num_pending == 1 and self._grow(sequence, 1):
                plan.decode.append(sequence)
                budget -= 1
        prefilling = [sequence for sequence in self.running if sequence.num_pending > 1]
        for sequence, count in share_budget(prefilling, self.limits.prefill_chunk, budget):
            if self._grow(sequence, count):
                plan.prefill.append(Chunk(sequence, count, count == sequence.num_pending))
        # Growing a later sequence may have preempted one that was planned before it.
        plan.decode = [sequence for sequence in plan.decode if sequence.lane != NO_LANE]
        plan.prefill = [chunk for chunk in plan.prefill if chunk.sequence.lane != NO_LANE]
        return plan

    def _admit(self) -> None:
        """Gives lanes to waiting sequences while there are lanes and room for their whole prompts."""
        promised = sum(
            self._blocks_for(len(sequence.ids)) - self._memory.num_held(sequence.lane) for sequence in self.running
        )
        while self.waiting and self._free_lanes:
            needed = self._blocks_for(len(self.waiting.first.ids) + 1)
            if promised + needed > self._memory.num_free_blocks:
                return
            promised += needed
            sequence = self.waiting.pop_first()
            sequence.lane = self._free_lanes.pop()
            self.running.append(sequence)

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Makes room for `count` more tokens, preempting others if need be.

        Those of the highest priority value go first, of one value the last admitted.
        """
        if sequence.lane == NO_LANE:
            return False
        while not self._memory.grow(sequence.lane, sequence.num_cached + count):
            victim = max(reversed(self.running), key=lambda running: running.priority)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Puts a sequence back, before all others of its priority, to be computed again, output included."""
        self.running.remove(sequence)
        self._free_lane(sequence)
        sequence.num_cached = 0
        self.waiting.put_back(sequence)
        self.num_preemptions += 1

    def _free_lane(self, sequence: Sequence) -> None:
        self._memory.release(sequence.lane)
        self._free_lanes.append(sequence.lane)
        sequence.lane = NO_LANE

    def check_integrity(self) -> None:
        """Asserts that every lane is free, without cache blocks, or held by exactly one running sequence."""
        lanes = [sequence.lane for sequence in self.running]
        known = sorted(lanes + self._free_lanes)
        assert known == list(range(self.limits.max_sequences)), "a lane is lost or held twice"
        assert not any(self._memory.num_held(lane) for lane in self._free_lanes), "a free lane holds cache blocks"
        assert all(sequence.lane == NO_LANE and not sequence.num_cached for sequence in self.waiting)


def share_budget(prefilling: list[Sequence], chunk: int, budget: int) -> list[tuple[Sequence, int]]:
    """Returns how many tokens of each prompt the next step computes, at most `chunk` of one and `budget` of all.

    Half of the budget goes to the prompts in order of arrival, the other half to the shortest ones, and what is left
    again in order of arrival: a long prompt neither holds up short ones nor is held up by a stream of them.

    Example, chunk and budget 8, pending 60 and 2: the first prompt gets 4 + 2, the second 2.
    """
    counts = dict.fromkeys(range(len(prefilling)), 0)
    by_length = sorted(counts, key=lambda index: prefilling[index].num_pending)
    for order, limit in ((list(counts), budget - budget // 2), (by_length, budget), (list(counts), budget)):
        left = limit - sum(counts.values())
        for index in order:
            more = max(0, min(prefilling[index].num_pending, chunk) - counts[index])
            counts[index] += min(more, left)
            left -= min(more, left)
    return [(prefilling[index], count) for index, count in counts.items() if count]
