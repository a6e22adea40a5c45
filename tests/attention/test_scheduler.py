"""The scheduler, driven as an engine does: random arrivals, prompts, outputs, cancellations and memory."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention.scheduler import Scheduler, SchedulerLimits, StepPlan, share_budget
from attention.sequence import NO_LANE, Sequence
from protos.generation_pb2 import Sampling

BLOCK = 4


class CountingMemory:
    """A cache that only counts its blocks."""

    def __init__(self, num_blocks: int, num_lanes: int) -> None:
        self.num_free_blocks = num_blocks
        self._held = [0] * num_lanes

    def grow(self, lane: int, num_positions: int) -> bool:
        missing = -(-num_positions // BLOCK) - self._held[lane]
        if missing > self.num_free_blocks:
            return False
        if missing > 0:
            self._held[lane] += missing
            self.num_free_blocks -= missing
        return True

    def release(self, lane: int) -> None:
        self.num_free_blocks += self._held[lane]
        self._held[lane] = 0

    def num_held(self, lane: int) -> int:
        return self._held[lane]


def make_sequence(key: int, num_prompt: int, max_output: int) -> Sequence:
    return Sequence(key, [0] * num_prompt, num_prompt, Sampling(), max_output, arrival_s=0.0)


@dataclass
class Simulation:
    """Plays the engine around a scheduler, and checks each plan."""

    limits: SchedulerLimits
    num_blocks: int
    admitted: list[int] = field(default_factory=list)  # keys, when they first got a lane
    finished: set[int] = field(default_factory=set)
    live: dict[int, Sequence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = CountingMemory(self.num_blocks, self.limits.max_sequences)
        self.scheduler = Scheduler(self.limits, self.memory, lambda length: -(-length // BLOCK))

    def add(self, sequence: Sequence) -> None:
        self.live[sequence.key] = sequence
        self.scheduler.add(sequence)

    def cancel(self, key: int) -> None:
        self.scheduler.remove(self.live.pop(key))

    def step(self) -> None:
        running = list(self.scheduler.running)
        preempted_before = self.scheduler.num_preemptions
        lanes = {sequence.key: sequence.lane for sequence in running}
        plan = self.scheduler.next_step()
        self.check_integrity()
        # A victim of this step may have been admitted in it; those of before that lost their lane tell the order.
        preempted = [sequence for sequence in running if sequence.lane != lanes[sequence.key]]
        assert running[: len(running) - len(preempted)] == [s for s in running if s not in preempted], (
            "one was preempted although a later one was kept"
        )
        assert self.scheduler.num_preemptions - preempted_before >= len(preempted)
        self._note_admissions(running)
        self._check_plan(plan, [sequence for sequence in running if sequence not in preempted])
        if self.scheduler.num_preemptions == preempted_before:
            self._check_budget_is_used(plan)
        self._advance(plan)

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        held = sum(self.memory.num_held(lane) for lane in range(self.limits.max_sequences))
        assert held + self.memory.num_free_blocks == self.num_blocks
        known = [*self.scheduler.waiting, *self.scheduler.running]
        assert len(known) == len(self.live), "a sequence is lost, or there twice"
        assert {sequence.key for sequence in known} == self.live.keys()

    def _note_admissions(self, before: list[Sequence]) -> None:
        for sequence in self.scheduler.running:
            if sequence not in before and sequence.key not in self.admitted:
                self.admitted.append(sequence.key)

    def _check_plan(self, plan: StepPlan, stayed: list[Sequence]) -> None:
        limits = self.limits
        planned = plan.sequences
        assert plan or not self.live, "there is work, but nothing is planned"
        assert len({sequence.key for sequence in planned}) == len(planned), "a sequence is planned twice"
        assert all(sequence.num_pending == 1 for sequence in plan.decode)
        for sequence in stayed:
            assert sequence.num_pending != 1 or sequence in plan.decode, "a decoding sequence was left out of a step"
        num_prefill = sum(chunk.count for chunk in plan.prefill)
        assert num_prefill <= max(0, limits.max_batch_tokens - len(plan.decode)), "the step is over its budget"
        for chunk in plan.prefill:
            assert 0 < chunk.count <= min(limits.prefill_chunk, chunk.sequence.num_pending)
            assert chunk.last == (chunk.count == chunk.sequence.num_pending)
            self._check_memory(chunk.sequence, chunk.count)
        for sequence in plan.decode:
            self._check_memory(sequence, 1)
        order = [self.scheduler.running.index(chunk.sequence) for chunk in plan.prefill]
        assert order == sorted(order), "a later prompt went before an earlier one"

    def _check_budget_is_used(self, plan: StepPlan) -> None:
        prompts = [sequence.num_pending for sequence in self.scheduler.running if sequence.num_pending > 1]
        wanted = sum(min(pending, self.limits.prefill_chunk) for pending in prompts)
        room = max(0, self.limits.max_batch_tokens - len(plan.decode))
        assert sum(chunk.count for chunk in plan.prefill) == min(wanted, room), "a prompt was held up without need"

    def _check_memory(self, sequence: Sequence, count: int) -> None:
        assert sequence.lane != NO_LANE
        assert self.memory.num_held(sequence.lane) * BLOCK >= sequence.num_cached + count

    def _advance(self, plan: StepPlan) -> None:
        drawn = list(plan.decode) + [chunk.sequence for chunk in plan.prefill if chunk.last]
        for sequence in plan.decode:
            sequence.num_cached += 1
        for chunk in plan.prefill:
            chunk.sequence.num_cached += chunk.count
        for sequence in drawn:
            sequence.ids.append(0)
            if sequence.num_output >= sequence.max_output:
                self.finished.add(sequence.key)
                self.scheduler.remove(self.live.pop(sequence.key))


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 25), st.integers(1, 40), st.integers(1, 20), st.booleans()
    ),  # when, prompt, output, cancel
    min_size=1,
    max_size=14,
)


@given(
    arrivals=ARRIVALS,
    chunk=st.integers(1, 30),
    spare=st.integers(0, 20),
    max_sequences=st.integers(1, 5),
    num_blocks=st.integers(15, 30),  # one sequence of 40 + 20 tokens needs 15
)
def test_every_sequence_ends_in_fair_order(
    arrivals: list[tuple[int, int, int, bool]], chunk: int, spare: int, max_sequences: int, num_blocks: int
) -> None:
    budget = max_sequences + spare
    simulation = Simulation(SchedulerLimits(min(chunk, budget), budget, max_sequences, 100), num_blocks)
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    for now in range(8000):
        for key, (when, num_prompt, max_output, _) in enumerate(arrivals):
            if when == now:
                simulation.add(make_sequence(key, num_prompt, max_output))
        for key, (when, _, _, cancelled) in enumerate(arrivals):
            if cancelled and when + 5 == now and key in simulation.live:
                simulation.cancel(key)
        simulation.step()
        if now > 30 and not simulation.live:
            break
    assert not simulation.live, "a sequence never ends"
    assert simulation.finished >= {key for key, arrival in enumerate(arrivals) if not arrival[3]}
    assert simulation.admitted == sorted(simulation.admitted), "a later sequence was admitted before an earlier one"
    assert simulation.memory.num_free_blocks == num_blocks


def start(limits: SchedulerLimits, num_blocks: int, *lengths: tuple[int, int]) -> Simulation:
    """A simulation with sequences of (prompt, output) tokens."""
    simulation = Simulation(limits, num_blocks)
    for key, (num_prompt, max_output) in enumerate(lengths):
        simulation.add(make_sequence(key, num_prompt, max_output))
    return simulation


def test_a_long_prompt_does_not_stall_decoding() -> None:
    simulation = start(SchedulerLimits(8, 16, 4, 10), 1000, (3, 60), (3, 60), (400, 5))
    simulation.step()
    for sequence in (simulation.live[0], simulation.live[1]):
        assert sequence.num_output == 1
    for step in range(2, 40):
        simulation.step()
        assert [simulation.live[key].num_output for key in (0, 1)] == [step, step]
        assert simulation.live[2].num_cached == 8 * step


def test_short_prompts_share_a_step_with_a_long_one() -> None:
    simulation = start(SchedulerLimits(8, 20, 4, 10), 1000, (100, 5), (4, 5), (30, 5))
    simulation.step()
    assert [simulation.live[key].num_cached for key in range(3)] == [8, 4, 8]


def test_the_last_admitted_is_preempted_and_returns_first() -> None:
    simulation = start(SchedulerLimits(8, 32, 3, 10), 6, (8, 12), (8, 12), (4, 3), (4, 3))
    scheduler = simulation.scheduler
    simulation.step()
    assert [sequence.key for sequence in scheduler.running] == [0, 1, 2][: len(scheduler.running)]
    while not scheduler.num_preemptions:
        simulation.step()
    assert scheduler.running[0].key == 0
    assert scheduler.waiting.first.key == len(scheduler.running), "the one preempted goes before those that never ran"
    assert scheduler.waiting.first.num_cached == 0
    while simulation.live:
        simulation.step()
    assert simulation.finished == {0, 1, 2, 3}


def test_the_lowest_priority_value_is_admitted_first() -> None:
    simulation = Simulation(SchedulerLimits(8, 32, 1, 10), 100)
    for key, priority in enumerate([0, 5, -1, 0, -1, 5]):
        sequence = make_sequence(key, 4, 2)
        sequence.priority = priority
        simulation.add(sequence)
    while simulation.live:
        simulation.step()
    assert simulation.admitted == [2, 4, 0, 3, 1, 5]


@pytest.mark.parametrize("late", [0, 1, 2])
def test_the_highest_priority_value_is_preempted_first(late: int) -> None:
    """Of three that grow until the memory is full, the one with the highest value leaves, whenever it came."""
    simulation = Simulation(SchedulerLimits(8, 32, 3, 10), 9)
    scheduler = simulation.scheduler
    for key in range(3):
        sequence = make_sequence(key, 8, 20)
        sequence.priority = 1 if key == late else 0
        simulation.add(sequence)
    while not scheduler.num_preemptions:
        scheduler.next_step()
        for sequence in scheduler.running:
            sequence.num_cached = len(sequence.ids)
            sequence.ids.append(0)
    assert [sequence.key for sequence in scheduler.waiting] == [late]
    scheduler.check_integrity()


@pytest.mark.parametrize("num_blocks", range(12, 18))
def test_a_growing_prompt_preempts_a_sequence_that_was_planned_before_it(num_blocks: int) -> None:
    simulation = start(SchedulerLimits(2, 32, 3, 10), num_blocks, (40, 1), (3, 40))
    while simulation.live:
        simulation.step()
    assert simulation.finished == {0, 1}
    assert bool(simulation.scheduler.num_preemptions) == (num_blocks < 16)


def test_decoding_sequences_fit_however_small_the_budget() -> None:
    simulation = start(SchedulerLimits(4, 4, 4, 10), 100, (1, 9), (1, 9), (1, 9), (1, 9))
    for step in range(1, 9):
        simulation.step()
        assert [simulation.live[key].num_output for key in range(4)] == [step] * 4


def test_a_sequence_waits_until_its_whole_prompt_fits() -> None:
    simulation = start(SchedulerLimits(8, 32, 4, 10), 10, (30, 4), (30, 4))
    simulation.step()
    assert [sequence.key for sequence in simulation.scheduler.running] == [0]
    assert [sequence.key for sequence in simulation.scheduler.waiting] == [1]


@pytest.mark.parametrize("num_waiting", [0, 1, 3])
def test_queue_full(num_waiting: int) -> None:
    simulation = start(SchedulerLimits(8, 32, 2, 3), 100)
    for key in range(2):
        simulation.add(make_sequence(key, 4, 50))
    simulation.step()
    for key in range(2, 2 + num_waiting):
        simulation.add(make_sequence(key, 4, 50))
    assert simulation.scheduler.queue_full == (num_waiting == 3)
    simulation.cancel(0)
    assert not simulation.scheduler.queue_full


def shares(pending: list[int], chunk: int, budget: int) -> list[int]:
    """What `share_budget` gives to each of some prompts."""
    prompts = [make_sequence(index, count, 1) for index, count in enumerate(pending)]
    given = {sequence.key: count for sequence, count in share_budget(prompts, chunk, budget)}
    return [given.get(prompt.key, 0) for prompt in prompts]


@pytest.mark.parametrize(
    ("pending", "chunk", "budget", "expected"),
    [
        ([60, 2], 8, 8, [6, 2]),  # a short prompt does not wait for a long one
        ([60], 8, 8, [8]),
        ([4, 4, 4, 4], 8, 8, [4, 4, 0, 0]),  # equal ones in order of arrival
        ([60, 5, 5, 5], 8, 8, [4, 4, 0, 0]),  # nor a long one for a stream of short ones
        ([60, 60], 8, 100, [8, 8]),
        ([60, 3], 8, 0, [0, 0]),
    ],
)
def test_share_budget(pending: list[int], chunk: int, budget: int, expected: list[int]) -> None:
    assert shares(pending, chunk, budget) == expected


@given(st.lists(st.integers(2, 100), max_size=8), st.integers(1, 64), st.integers(0, 128))
def test_share_budget_spends_all_it_can(pending: list[int], chunk: int, budget: int) -> None:
    given_counts = shares(pending, chunk, budget)
    wanted = [min(count, chunk) for count in pending]
    assert all(count <= most for count, most in zip(given_counts, wanted, strict=True))
    assert sum(given_counts) == min(budget, sum(wanted))
