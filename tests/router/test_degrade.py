"""`experts.on_missing: degrade`: rows go to the experts that live, and the answer names the others.

T rows, D model dim, E experts, K chosen experts per row.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protos.dispatch_pb2 import Header
from router.core import Router
from tests.router.fleet import Answers, Weights, cut, layer_request, make_router, random_weights
from transport.base import DegradedRows, OnReply, Peer
from transport.errors import CallError, PeerLost
from transport.loop import Timer
from transport.replicas import PAUSE_S
from transport.table import ShardEntry, ShardKey
from transport.tries import MAX_DEATHS


class Replica:
    """A replica that the test takes away and brings back; while it is held it keeps its calls."""

    def __init__(self, peer: Peer) -> None:
        self.ready = True
        self.held = False
        self.num_calls = 0
        self._peer = peer
        self._calls: list[tuple[Header, Tensor, OnReply]] = []

    @property
    def rows_in_flight(self) -> int:
        return sum(rows_TD.shape[0] for _, rows_TD, _ in self._calls)

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        assert self.ready, "a lost replica was called"
        self.num_calls += 1
        self._calls.append((header, rows_TD, on_reply))
        if not self.held:
            self.answer()

    def answer(self) -> None:
        """Answers what it holds."""
        calls, self._calls = self._calls, []
        for header, rows_TD, on_reply in calls:
            self._peer.call(header, rows_TD, on_reply)

    def lose(self) -> None:
        """As SocketPeer does it: not ready any more, then every call gets PeerLost."""
        self.ready = False
        calls, self._calls = self._calls, []
        for _, _, on_reply in calls:
            on_reply(PeerLost("killed"))

    def close(self) -> None:
        self.lose()


class Fleet:
    """A degrading router and its experts, one layer; timers fire when the test says so."""

    def __init__(self, layer: Weights, top_k: int, shards: tuple[ShardEntry, ...]) -> None:
        self.layer, self.top_k = layer, top_k
        self.replicas: dict[ShardKey, list[Replica]] = {}
        self.timers: list[Timer] = []
        self.router: Router = make_router([layer], top_k, shards, self._wrap, degrade=True, call_later=self._call_later)

    def _wrap(self, key: ShardKey, peer: Peer) -> Peer:
        self.replicas.setdefault(key, []).append(Replica(peer))
        return self.replicas[key][-1]

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]

    def only(self, expert: int, slice_index: int = 0) -> Replica:
        """The one replica of the shard that holds this expert."""
        (found,) = [
            replica
            for key, (replica,) in self.replicas.items()
            if expert in key.expert_ids and key.slice_index == slice_index
        ]
        return found

    def end_pauses(self) -> None:
        """Lets the time pass for which rows that have cost replicas are kept back."""
        pauses = [timer for timer in self.timers if timer.due_s == PAUSE_S]
        self.timers = [timer for timer in self.timers if timer not in pauses]
        for timer in pauses:
            assert timer.callback is not None
            timer.callback()

    def hold(self) -> None:
        for replicas in self.replicas.values():
            for replica in replicas:
                replica.held = True

    def ask(self, rows_TD: Tensor) -> Answers:
        request, answers = layer_request(0, rows_TD)
        self.router.serve([request])
        return answers

    def is_naive(self, answers: Answers, rows_TD: Tensor, missing: tuple[int, ...] = ()) -> bool:
        """Whether the one answer is that of the naive loop without the missing experts, and names them."""
        answer_TD = answers.degraded.rows_TD if missing else answers.rows
        assert not missing or answers.degraded.missing_experts == missing
        return torch.allclose(answer_TD, self.layer.naive(rows_TD, self.top_k, missing), atol=1e-5)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fleet_of(
    generator: torch.Generator, top_k: int = 2, per_actor: int = 1, num_slices: int = 1, num_replicas: int = 1
) -> Fleet:
    """Four experts."""
    return Fleet(random_weights(4, 8, 16, generator), top_k, cut(4, per_actor, num_slices, num_replicas))


@given(st.data())
def test_any_cut_without_any_experts_gives_the_naive_answer(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, num_experts))
    shards = cut(num_experts, data.draw(st.integers(1, num_experts)), data.draw(st.integers(1, 3)))
    away = data.draw(st.sets(st.sampled_from([entry.key for entry in shards]), max_size=len(shards)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    fleet = Fleet(random_weights(num_experts, 8, 16, generator), top_k, shards)
    for key in away:
        fleet.replicas[key][0].lose()
    rows_TD = torch.randn(data.draw(st.integers(1, 9)), 8, generator=generator)
    answers = fleet.ask(rows_TD)
    missing = tuple(sorted({expert for key in away for expert in key.expert_ids}))
    if len(missing) == num_experts:
        assert answers.received == []
        assert len(fleet.timers) == 1
        return
    assert fleet.is_naive(answers, rows_TD, missing)
    num_chosen = min(top_k, num_experts - len(missing))
    assert sum(fleet.router.rows_per_expert) == rows_TD.shape[0] * num_chosen
    assert not any(fleet.router.rows_per_expert[expert] for expert in missing)
    assert fleet.router.num_degraded_rows == (rows_TD.shape[0] if missing else 0)
    assert fleet.timers == []


def test_one_replica_of_two_is_enough(generator: torch.Generator) -> None:
    fleet = fleet_of(generator, num_slices=2, num_replicas=2)
    for first, _ in fleet.replicas.values():
        first.lose()
    rows_TD = torch.randn(5, 8, generator=generator)
    assert fleet.is_naive(fleet.ask(rows_TD), rows_TD)
    assert fleet.router.num_degraded_rows == 0


@pytest.mark.parametrize("num_rows", [1, 7])
def test_an_expert_that_is_back_is_used_at_once(generator: torch.Generator, num_rows: int) -> None:
    fleet = fleet_of(generator, top_k=4)
    rows_TD = torch.randn(num_rows, 8, generator=generator)
    fleet.only(2).lose()
    assert fleet.is_naive(fleet.ask(rows_TD), rows_TD, missing=(2,))
    fleet.only(2).ready = True
    assert fleet.is_naive(fleet.ask(rows_TD), rows_TD)
    assert fleet.only(2).num_calls == 1
    assert fleet.router.num_degraded_rows == num_rows


@pytest.mark.parametrize("num_rows", [1, 6])
def test_an_expert_lost_in_the_middle_of_a_call(generator: torch.Generator, num_rows: int) -> None:
    """All rows are routed anew; what the first try still brings is ignored."""
    fleet = fleet_of(generator, top_k=3)
    fleet.hold()
    rows_TD = torch.randn(num_rows, 8, generator=generator)
    answers = fleet.ask(rows_TD)
    lost, *others = [expert for expert in range(4) if fleet.only(expert).busy]
    fleet.only(others[0]).answer()
    assert fleet.only(others[1]).busy, "it owes an answer to the first try"
    fleet.only(lost).lose()
    assert answers.received == []
    for expert in range(4):
        fleet.only(expert).answer()
    assert fleet.is_naive(answers, rows_TD, missing=(lost,))
    assert not any(fleet.only(expert).busy for expert in range(4))


def test_experts_lost_one_after_the_other_until_none_is_left(generator: torch.Generator) -> None:
    fleet = fleet_of(generator, top_k=2)
    fleet.hold()
    rows_TD = torch.randn(9, 8, generator=generator)
    answers = fleet.ask(rows_TD)
    for lost in range(4):
        fleet.only(lost).lose()
    fleet.end_pauses()
    assert answers.received == []
    assert len(fleet.timers) == 1, "it waits, like every request while nothing lives"
    fleet.only(3).ready, fleet.only(3).held = True, False
    fleet.router.update(cut(4, 1, 1))
    assert fleet.is_naive(answers, rows_TD, missing=(0, 1, 2))


def test_rows_that_cost_one_expert_after_the_other_fail(generator: torch.Generator) -> None:
    """Each that has them dies, and they go on to the next best."""
    fleet = fleet_of(generator, top_k=1)
    fleet.hold()
    answers = fleet.ask(torch.randn(1, 8, generator=generator))
    num_lost = 0
    while not answers.received:
        (victim,) = [expert for expert in range(4) if fleet.only(expert).busy]
        fleet.only(victim).lose()
        num_lost += 1
        fleet.end_pauses()
    assert num_lost == MAX_DEATHS
    assert answers.error.code == "internal"


def test_a_lost_slice_takes_its_expert_along(generator: torch.Generator) -> None:
    fleet = fleet_of(generator, top_k=4, per_actor=2, num_slices=3)
    fleet.hold()
    rows_TD = torch.randn(4, 8, generator=generator)
    answers = fleet.ask(rows_TD)
    fleet.only(1, slice_index=2).lose()
    for slice_index in range(3):
        assert not fleet.only(0, slice_index).num_calls > 1, "its other slices are of no use"
        fleet.only(2, slice_index).answer()
    assert fleet.is_naive(answers, rows_TD, missing=(0, 1))


def test_without_any_expert_requests_wait_for_the_first_that_comes(generator: torch.Generator) -> None:
    fleet = fleet_of(generator)
    for expert in range(4):
        fleet.only(expert).lose()
    rows_TD = torch.randn(3, 8, generator=generator)
    early, late = fleet.ask(rows_TD), fleet.ask(rows_TD[:1])
    fleet.router.update(cut(4, 1, 1))  # nothing has changed
    assert early.received == late.received == []
    fleet.only(1).ready = True
    fleet.router.update(cut(4, 1, 1))
    assert fleet.is_naive(early, rows_TD, missing=(0, 2, 3))
    assert fleet.is_naive(late, rows_TD[:1], missing=(0, 2, 3))
    assert all(timer.callback is None for timer in fleet.timers), "nobody gives up any more"


def test_without_any_expert_requests_fail_in_time(generator: torch.Generator) -> None:
    fleet = fleet_of(generator)
    for expert in range(4):
        fleet.only(expert).lose()
    answers = fleet.ask(torch.randn(3, 8, generator=generator))
    assert fleet.timers[0].callback is not None
    fleet.timers[0].callback()
    assert answers.error.code == "expert_unavailable"
    assert answers.error.message == "no expert came back within 1 s (limits.recovery_timeout_s)"
    fleet.only(1).ready = True
    fleet.router.update(cut(4, 1, 1))
    assert len(answers.received) == 1, "what has been given up is not done any more"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_that_are_no_numbers_never_go_to_a_missing_expert(value: float, num_rows: int) -> None:
    """A living expert whose logit is minus infinity still comes before one that is not there."""
    layer = random_weights(4, 8, 16, torch.Generator().manual_seed(0))
    layer.gate_ED.copy_(torch.tensor([1.0, -1.0, -1.0, -1.0])[:, None].expand(4, 8))
    fleet = Fleet(layer, 3, cut(4, 1, 1))
    fleet.only(1).lose()
    answers = fleet.ask(torch.full((num_rows, 8), value))
    assert answers.degraded.missing_experts == (1,)
    assert fleet.router.rows_per_expert == [num_rows, 0, num_rows, num_rows]


def test_while_nothing_is_missing_a_lone_row_goes_the_short_way(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(generator)
    monkeypatch.setattr("router.levels.top_k_living", None)
    monkeypatch.setattr("router.levels.dispatch", None)
    row_1D = torch.randn(1, 8, generator=generator)
    assert fleet.is_naive(fleet.ask(row_1D), row_1D)


def test_a_router_that_waits_does_not_ask_what_is_missing(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_weights(4, 8, 16, generator)
    router = make_router([layer], 2, cut(4, 1, 1))
    monkeypatch.setattr(router, "_missing_experts", None)
    for num_rows in (1, 3):
        request, answers = layer_request(0, torch.randn(num_rows, 8, generator=generator))
        router.serve([request])
        assert torch.allclose(answers.rows, layer.naive(request.rows_TD, 2), atol=1e-5)


def test_an_expert_that_answers_like_a_router_fails_the_request(generator: torch.Generator) -> None:
    class Confused(Replica):
        """Answers with missing experts."""

        def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
            on_reply(DegradedRows(rows_TD, (1,)))

    layer = random_weights(4, 8, 16, generator)
    router = make_router([layer], 2, cut(4, 4, 1), lambda key, peer: Confused(peer))
    request, answers = layer_request(0, torch.randn(2, 8, generator=generator))
    router.serve([request])
    assert answers.error.code == "internal"
    assert "answered as only routers do" in answers.error.message


def test_an_error_that_no_replica_would_cure_is_no_reason_to_degrade(generator: torch.Generator) -> None:
    class Failing(Replica):
        """Cannot compute."""

        def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
            on_reply(CallError("internal", "out of memory"))

    layer = random_weights(4, 8, 16, generator)
    router = make_router([layer], 4, cut(4, 2, 1), lambda key, peer: Failing(peer), degrade=True)
    request, answers = layer_request(0, torch.randn(2, 8, generator=generator))
    router.serve([request])
    assert answers.error.message == "out of memory"
