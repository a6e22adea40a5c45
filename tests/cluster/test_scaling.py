"""How many replicas a part should have: by examples, as properties, and on simulated shards."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling import MAX_GROWTH, SLACK, Decision, History, Load, Rules, decide

INTERVAL_S = 5.0
DELAY_S = 60.0
RULES = Rules(fewest=1, most=16, target_utilization=0.7, downscale_delay_s=DELAY_S)


def decided(num_replicas: int, *loads: Load, rules: Rules = RULES) -> Decision:
    """The first decision on a part."""
    return decide("shard 3", num_replicas, loads, rules, (), 0.0)


@dataclass
class Part:
    """A part that is decided on again and again, each time with the loads it is given."""

    num_replicas: int
    rules: Rules = RULES
    history: History = ()
    now_s: float = 0.0
    reasons: list[str] = field(default_factory=list[str])

    def step(self, *loads: Load) -> int:
        decision = decide("part", self.num_replicas, loads, self.rules, self.history, self.now_s)
        self.num_replicas, self.history = decision.num_replicas, decision.history
        self.reasons += [decision.reason] if decision.reason else []
        self.now_s += INTERVAL_S
        return self.num_replicas

    def shared(self, demand: float, starting: int = 0) -> int:
        """A demand that the replicas share evenly; what they cannot do is not seen."""
        serving = max(1, self.num_replicas - starting)
        return self.step(*[Load(min(1.0, demand / serving))] * serving)


def test_it_grows_at_once_and_says_why() -> None:
    decision = decided(2, Load(0.9), Load(0.96))
    assert decision.num_replicas == 3
    assert decision.reason == "shard 3: 2 replicas busy 0.93 of the time, target 0.7: 2 → 3 replicas"


def test_it_stays_at_the_target() -> None:
    assert decided(2, Load(0.7), Load(0.7)) == Decision(2, ((0.0, 3),))
    assert decided(1, Load(0.7)).num_replicas == 1


def test_a_queue_grows_it_faster_but_at_most_twofold() -> None:
    assert decided(4, *[Load(1.0)] * 4).num_replicas == 6
    assert decided(4, *[Load(1.0, 0.2)] * 4).num_replicas == 7
    decision = decided(4, *[Load(1.0, 5.0)] * 4)
    assert decision.num_replicas == 4 * MAX_GROWTH
    assert "with work for 20.0 more waiting" in decision.reason


def test_a_replica_that_starts_is_capacity_already_asked_for() -> None:
    part = Part(1)
    assert part.step(Load(1.0)) == 2
    for _ in range(20):  # as long as the second one loads, the first stays overloaded
        assert part.step(Load(1.0)) == 2
    assert len(part.reasons) == 1


def test_a_part_of_which_nothing_is_known_stays() -> None:
    part = Part(5)
    for _ in range(100):
        assert part.step() == 5
    part.step(Load(0.0))
    assert part.num_replicas == 5  # not because of a single reading


def test_it_shrinks_only_after_the_delay_to_the_most_that_was_asked_for() -> None:
    part = Part(8)
    for _ in range(3):
        part.shared(5.0)
    busy_s = part.now_s - INTERVAL_S
    part.shared(1.8)  # asks for 3
    while part.num_replicas == 8:
        part.shared(0.5)  # asks for 1
    assert part.now_s - INTERVAL_S == busy_s + DELAY_S
    assert part.num_replicas == 3
    assert part.shared(0.5) == 1
    assert (
        part.reasons[0]
        == "part: 8 replicas busy 0.06 of the time, target 0.7, and 3 would have done for 60 s: 8 → 3 replicas"
    )


def test_a_burst_during_the_delay_starts_it_anew() -> None:
    part = Part(4)
    for _ in range(6):
        for _ in range(10):
            assert part.shared(0.5) == 4
        assert part.shared(2.7) == 4


@pytest.mark.parametrize(("given", "expected"), [(1, 2), (9, 4), (3, 3)])
def test_bounds_that_have_changed_apply_at_once(given: int, expected: int) -> None:
    decision = decided(given, Load(0.6), rules=Rules(2, 4, 0.7, DELAY_S))
    assert decision.num_replicas == expected
    assert bool(decision.reason) == (given != expected)


LOADS = st.builds(Load, st.floats(0, 1), st.floats(0, 50))
ALL_RULES = st.builds(
    lambda fewest, more, target, delay_s: Rules(fewest, fewest + more, target, delay_s),
    st.integers(1, 8),
    st.integers(0, 40),
    st.floats(0.05, 0.99),
    st.floats(0.1, 300),
)


@given(rules=ALL_RULES, first=st.integers(1, 60), history=st.lists(st.lists(LOADS, max_size=6), max_size=40))
def test_never_outside_its_bounds_nor_more_than_doubled(rules: Rules, first: int, history: list[list[Load]]) -> None:
    part = Part(first, rules)
    for loads in history:
        before = part.num_replicas
        after = part.step(*loads)
        assert rules.fewest <= after <= rules.most
        assert after <= max(rules.fewest, MAX_GROWTH * before)
        assert len(part.history) <= rules.most


@given(
    rules=ALL_RULES, num=st.integers(1, 30), before=st.lists(st.lists(LOADS, max_size=4), max_size=15), data=st.data()
)
def test_more_load_never_means_fewer_replicas(
    rules: Rules, num: int, before: list[list[Load]], data: st.DataObject
) -> None:
    part = Part(num, rules)
    for loads in before:
        part.step(*loads)
    low = data.draw(st.lists(LOADS, min_size=1, max_size=6))
    high = [Load(data.draw(st.floats(load.utilization, 1)), load.queued + data.draw(st.floats(0, 9))) for load in low]
    counts = [
        decide("part", part.num_replicas, loads, rules, part.history, part.now_s).num_replicas for loads in (low, high)
    ]
    assert counts[0] <= counts[1]


@given(rules=ALL_RULES, first=st.integers(1, 48), demand=st.floats(0, 30))
def test_a_constant_load_moves_it_one_way_and_then_never_again(rules: Rules, first: int, demand: float) -> None:
    part = Part(min(max(first, rules.fewest), rules.most), rules)
    counts = [part.num_replicas, *(part.shared(demand) for _ in range(200))]
    assert counts in (sorted(counts), sorted(counts, reverse=True))
    assert len(set(counts[100:])) == 1
    busy = demand / counts[-1]
    assert busy <= rules.target_utilization + 1e-6 or counts[-1] == rules.most
    would_be = demand / (counts[-1] - 1) if counts[-1] > 1 else math.inf
    assert would_be > rules.target_utilization * (1 - SLACK) - 1e-6 or counts[-1] == rules.fewest


@given(edge=st.integers(1, 12), swings=st.lists(st.floats(-0.04, 0.04), min_size=60, max_size=60))
def test_a_load_that_swings_around_an_edge_does_not_move_it_to_and_fro(edge: int, swings: list[float]) -> None:
    part = Part(edge)
    counts = [part.shared(edge * 0.7 * (1 + swing)) for swing in swings]
    assert counts == sorted(counts)
    assert counts[-1] <= edge + 1


@dataclass
class Shard:
    """Rows come, wait, and are computed; a replica that was asked for serves after `START_S`."""

    START_S = 20.0
    RATE = 100.0  # rows/s of one replica

    part: Part = field(default_factory=lambda: Part(1))
    starting: list[float] = field(default_factory=list[float])  # when each one serves
    waiting: float = 0.0

    def interval(self, rows_per_s: float) -> None:
        self.starting = [ready_s for ready_s in self.starting if ready_s > self.part.now_s]
        serving = self.part.num_replicas - len(self.starting)
        capacity = serving * self.RATE * INTERVAL_S
        self.waiting += rows_per_s * INTERVAL_S
        done = min(self.waiting, capacity)
        self.waiting -= done
        load = Load(done / capacity, self.waiting / capacity)
        now_s, before = self.part.now_s, self.part.num_replicas
        self.part.step(*[load] * serving)
        self.starting += [now_s + self.START_S] * max(0, self.part.num_replicas - before)


def test_a_skewed_load_replicates_the_hot_shard_and_no_other() -> None:
    shards = [Shard() for _ in range(8)]
    skew = [30.0] * 8
    skew[3] = 450.0
    for _ in range(60):
        for shard, rows_per_s in zip(shards, skew, strict=True):
            shard.interval(rows_per_s)
    hot = shards.pop(3)
    assert [shard.part.num_replicas for shard in shards] == [1] * 7
    assert not any(shard.part.reasons for shard in shards)
    assert 7 <= hot.part.num_replicas <= 14  # 450 rows/s at 0.7 ask for 7; the backlog may have asked for more
    assert hot.waiting == 0


def test_when_the_heat_moves_the_replicas_follow() -> None:
    shards = [Shard() for _ in range(4)]
    for hot in (0, 2):
        for _ in range(60):
            for index, shard in enumerate(shards):
                shard.interval(300.0 if index == hot else 20.0)
        counts = [shard.part.num_replicas for shard in shards]
        assert counts[hot] >= 5
        assert [count for index, count in enumerate(counts) if index != hot] == [1, 1, 1]
