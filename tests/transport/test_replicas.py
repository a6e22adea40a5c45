"""Replica choice and failover, with peers and time under the test's control."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.address import Address
from transport.base import OnReply
from transport.errors import CallError, PeerLost
from transport.loop import Timer
from transport.replicas import CHANGE_OVER_TIMEOUT_S, PAUSE_S, Replicas
from transport.tries import MAX_DEATHS, MAX_TRIES, Tries

ROWS_TD = torch.ones(2, 3)


def address(name: str) -> Address:
    return Address("here", name, "", 0)


class FakePeer:
    """Keeps calls until the test answers or loses them."""

    def __init__(self, ready: bool = True) -> None:
        self.ready = ready
        self.calls: list[tuple[Header, Tensor, OnReply]] = []
        self.closed = False

    @property
    def rows_in_flight(self) -> int:
        return sum(rows_TD.shape[0] for _, rows_TD, _ in self.calls)

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        self.calls.append((header, rows_TD, on_reply))

    def answer(self) -> None:
        _, rows_TD, on_reply = self.calls.pop(0)
        on_reply(rows_TD)

    def fail(self, error: CallError) -> None:
        _, _, on_reply = self.calls.pop(0)
        on_reply(error)

    def lose(self, with_rows: bool = True) -> None:
        """As SocketPeer does it: not ready any more, then every call gets PeerLost."""
        self.ready = False
        calls, self.calls = self.calls, []
        for _, _, on_reply in calls:
            on_reply(PeerLost("gone", with_rows))

    def close(self) -> None:
        self.closed = True
        self.lose(with_rows=False)


class Fleet:
    """Replicas, their peers by name, and timers that fire when the test says so."""

    def __init__(self) -> None:
        self.peers: dict[str, FakePeer] = {}
        self.timers: list[Timer] = []
        self.answers: list[Tensor | CallError] = []
        self.replicas = Replicas(self._connect, self._call_later, recovery_timeout_s=30.0)

    def _connect(self, where: Address) -> FakePeer:
        return self.peers.setdefault(where.unix_path, FakePeer())

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        assert delay_s in (30.0, CHANGE_OVER_TIMEOUT_S, PAUSE_S)
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]

    def set(self, **groups: str) -> None:
        """Groups by name; the replicas of one are single letters."""
        self.replicas.update({group: tuple(address(name) for name in names) for group, names in groups.items()})

    def call(self, group: str = "g") -> None:
        self.replicas.call(group, Header(), ROWS_TD, self.answers.append)

    def expire(self, *delays_s: float) -> None:
        """Fires every timer, or those of these delays."""
        timers = [timer for timer in self.timers if not delays_s or timer.due_s in delays_s]
        self.timers = [timer for timer in self.timers if timer not in timers]
        for timer in timers:
            if timer.callback is not None:
                timer.callback()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_the_least_loaded_replica_is_chosen(fleet: Fleet) -> None:
    fleet.set(g="abc")
    for _ in range(6):
        fleet.call()
    assert [len(fleet.peers[name].calls) for name in "abc"] == [2, 2, 2]
    fleet.peers["b"].answer()
    fleet.call()
    assert [len(fleet.peers[name].calls) for name in "abc"] == [2, 2, 2]


def test_equally_loaded_replicas_share_the_calls(fleet: Fleet) -> None:
    """Also when each call is answered before the next one is made, as a node's are."""
    fleet.set(g="ab")
    asked = {"a": 0, "b": 0}
    for _ in range(200):
        fleet.call()
        (name,) = [name for name, peer in fleet.peers.items() if peer.calls]
        asked[name] += 1
        fleet.peers[name].answer()
    assert min(asked.values()) > 50, "by chance less often than once in 10 ** 12 runs"


def test_a_replica_that_is_not_ready_is_passed_over(fleet: Fleet) -> None:
    fleet.peers["a"] = FakePeer(ready=False)
    fleet.set(g="ab")
    fleet.call()
    assert not fleet.peers["a"].calls
    assert len(fleet.peers["b"].calls) == 1


def test_groups_are_kept_apart(fleet: Fleet) -> None:
    fleet.set(g="a", h="b")
    fleet.call("h")
    assert not fleet.peers["a"].calls
    assert len(fleet.peers["b"].calls) == 1


def test_the_calls_of_a_lost_replica_go_to_another(fleet: Fleet) -> None:
    fleet.set(g="ab")
    fleet.call()
    fleet.call()
    fleet.peers["a"].lose()
    assert len(fleet.peers["b"].calls) == 2
    fleet.peers["b"].answer()
    fleet.peers["b"].answer()
    assert all(isinstance(answer, Tensor) for answer in fleet.answers)
    assert len(fleet.answers) == 2


def test_an_error_that_no_other_replica_would_cure_is_not_resent(fleet: Fleet) -> None:
    fleet.set(g="ab")
    fleet.call()
    (asked,) = [peer for peer in fleet.peers.values() if peer.calls]
    asked.fail(CallError("invalid_request", "no"))
    assert not any(peer.calls for peer in fleet.peers.values())
    assert [type(answer) for answer in fleet.answers] == [CallError]


def test_calls_wait_while_no_replica_is_there(fleet: Fleet) -> None:
    fleet.set(g="a")
    fleet.call()
    fleet.peers["a"].lose()
    fleet.call()
    assert fleet.answers == []
    fleet.peers["a"].ready = True
    fleet.replicas.retry_waiting()
    assert len(fleet.peers["a"].calls) == 2
    fleet.expire()
    fleet.peers["a"].answer()
    fleet.peers["a"].answer()
    assert [type(answer) for answer in fleet.answers] == [Tensor, Tensor]


def test_waiting_calls_go_to_a_replica_that_the_table_brings(fleet: Fleet) -> None:
    fleet.set(g="a")
    fleet.peers["a"].lose()
    fleet.call()
    fleet.set(g="b")
    assert fleet.peers["a"].closed
    assert len(fleet.peers["b"].calls) == 1


def test_a_group_that_nobody_knows_yet_is_waited_for(fleet: Fleet) -> None:
    fleet.call("later")
    fleet.set(later="a")
    assert len(fleet.peers["a"].calls) == 1


def test_waiting_ends_with_expert_unavailable(fleet: Fleet) -> None:
    fleet.set(g="")
    fleet.call()
    fleet.call()
    fleet.expire()
    assert len(fleet.answers) == 2
    for answer in fleet.answers:
        assert isinstance(answer, CallError)
        assert answer.code == "expert_unavailable"
        assert "within 30 s (limits.recovery_timeout_s)" in answer.message
    fleet.set(g="a")
    assert not fleet.peers["a"].calls, "what has been given up is not sent any more"


def test_replicas_that_leave_give_their_calls_to_those_that_stay(fleet: Fleet) -> None:
    fleet.set(g="ab")
    fleet.call()
    fleet.call()
    fleet.set(g="b")
    assert fleet.peers["a"].closed
    assert not fleet.peers["b"].closed
    assert len(fleet.peers["b"].calls) == 2


def test_complete_means_that_every_group_can_be_called(fleet: Fleet) -> None:
    assert not fleet.replicas.complete
    fleet.peers["b"] = FakePeer(ready=False)
    fleet.set(g="a", h="b")
    assert not fleet.replicas.complete
    fleet.peers["b"].ready = True
    assert fleet.replicas.complete
    fleet.set(g="a", h="")
    assert not fleet.replicas.complete


def test_closing_gives_every_call_back_to_waiting(fleet: Fleet) -> None:
    fleet.set(g="ab")
    fleet.call()
    fleet.replicas.close()
    assert fleet.answers == []
    fleet.expire()
    assert [type(answer) for answer in fleet.answers] == [CallError]


def test_who_does_not_want_to_wait_hears_that_no_replica_is_left(fleet: Fleet) -> None:
    fleet.set(g="ab")
    told: list[str] = []
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, lambda tries: told.append("none"))
    (asked,) = [peer for peer in fleet.peers.values() if peer.calls]
    asked.lose()
    assert told == [], "the other replica has it now"
    (other,) = [peer for peer in fleet.peers.values() if peer.calls]
    other.lose()
    fleet.expire()
    assert told == ["none"]
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, lambda tries: told.append("at once"))
    assert told == ["none", "at once"]
    assert fleet.answers == []
    assert fleet.timers == []


def test_has_ready(fleet: Fleet) -> None:
    fleet.set(g="ab", h="")
    fleet.peers["a"].lose()
    assert fleet.replicas.has_ready("g")
    assert not fleet.replicas.has_ready("h")
    assert not fleet.replicas.has_ready("unknown")
    fleet.peers["b"].lose()
    assert not fleet.replicas.has_ready("g")


def test_waiting_for_something_else_than_one_group(fleet: Fleet) -> None:
    fleet.set(g="a", h="b")
    done: list[str] = []
    fleet.peers["a"].lose()
    for awaited in ("both", "both and more"):
        fleet.replicas.wait(
            awaited,
            lambda: fleet.replicas.complete,
            lambda awaited=awaited: done.append(awaited),
            fleet.answers.append,
        )
    fleet.replicas.retry_waiting()
    assert done == []
    fleet.peers["a"].ready = True
    fleet.replicas.retry_waiting()
    assert done == ["both", "both and more"]
    fleet.replicas.retry_waiting()
    fleet.expire()
    assert (len(done), fleet.answers) == (2, [])
    fleet.replicas.wait("luck", lambda: False, lambda: None, fleet.answers.append)
    fleet.expire()
    assert isinstance(fleet.answers[0], CallError)
    assert fleet.answers[0].message == "no luck came back within 30 s (limits.recovery_timeout_s)"


def test_other_groups_take_over_once_each_has_a_replica_that_is_ready() -> None:
    fleet = Fleet()
    fleet.set(g="a")
    fleet.peers |= {"b": FakePeer(ready=False), "c": FakePeer()}
    changed: list[str] = []
    new = {"h": (address("b"),), "i": (address("c"),)}
    fleet.replicas.update(new, lambda: changed.append("now"))
    fleet.call()
    assert len(fleet.peers["a"].calls) == 1
    assert not changed
    fleet.peers["b"].ready = True
    fleet.replicas.retry_waiting()
    assert changed == ["now"]
    assert fleet.peers["a"].closed
    fleet.call("h")
    assert len(fleet.peers["b"].calls) == 1


def test_other_groups_take_over_in_any_case_after_a_while() -> None:
    fleet = Fleet()
    fleet.set(g="a")
    fleet.peers["b"] = FakePeer(ready=False)
    fleet.set(h="b")
    assert fleet.replicas.has_ready("g")
    callback = fleet.timers[-1].callback
    assert callback is not None
    callback()
    assert not fleet.replicas.has_ready("g")
    assert fleet.peers["a"].closed


def test_a_change_of_groups_can_be_taken_back() -> None:
    fleet = Fleet()
    fleet.set(g="a")
    fleet.peers["b"] = FakePeer(ready=False)
    fleet.set(h="b")
    fleet.set(g="a")
    assert fleet.peers["b"].closed
    assert fleet.replicas.has_ready("g")


@pytest.mark.parametrize("waits", [False, True], ids=["in flight", "waiting"])
def test_a_call_of_a_group_that_is_gone_is_given_back(waits: bool) -> None:
    fleet = Fleet()
    fleet.set(g="a")
    given_back: list[str] = []
    if waits:
        fleet.peers["a"].lose()
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, on_gone=lambda tries: given_back.append("gone"))
    assert not given_back
    fleet.set(h="b")
    assert given_back == ["gone"]
    assert fleet.answers == []


def test_closing_gives_no_call_back_for_another_try() -> None:
    fleet = Fleet()
    fleet.set(g="a")
    given_back: list[str] = []
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, on_gone=lambda tries: given_back.append("gone"))
    fleet.replicas.close()
    assert given_back == []
    assert fleet.peers["a"].closed


def test_a_call_to_a_group_that_is_gone_is_given_back(fleet: Fleet) -> None:
    """Whether it is under way, waits for a replica, or is made too late."""
    gone: list[str] = []

    def call(name: str) -> None:
        fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, on_gone=lambda tries: gone.append(name))

    fleet.set(g="a", h="b")
    call("under way")
    fleet.set(g="", h="b")
    assert not gone, "its only replica is lost: it may come back"
    fleet.set(h="b")
    assert gone == ["under way"]
    call("late")
    assert gone == ["under way", "late"]
    assert not fleet.answers


def test_what_waits_when_all_is_closed_is_not_given_back(fleet: Fleet) -> None:
    gone: list[str] = []
    fleet.set(g="")
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, on_gone=lambda tries: gone.append("g"))
    fleet.replicas.close()
    assert not gone
    (timer,) = fleet.timers
    assert timer.callback is not None
    timer.callback()
    assert [getattr(answer, "code", "") for answer in fleet.answers] == ["expert_unavailable"]


def busy(fleet: Fleet) -> FakePeer:
    """The one peer that has a call."""
    (peer,) = [peer for peer in fleet.peers.values() if peer.calls]
    return peer


def test_rows_that_cost_one_replica_after_the_other_fail(fleet: Fleet) -> None:
    fleet.set(g="abcdefgh")
    fleet.call()
    for number in range(1, MAX_DEATHS + 1):
        assert fleet.answers == []
        busy(fleet).lose()
        pauses = [timer.due_s for timer in fleet.timers]
        assert pauses == ([PAUSE_S] if 1 < number < MAX_DEATHS else []), "the first other one gets them at once"
        fleet.expire()
    (error,) = fleet.answers
    assert isinstance(error, CallError)
    assert error.code == "internal"
    assert error.message == "4 replicas of g were lost one after the other while they had these rows"
    assert sum(peer.ready for peer in fleet.peers.values()) == 8 - MAX_DEATHS


def test_rows_that_cost_each_replacement_of_the_only_replica_fail(fleet: Fleet) -> None:
    fleet.set(g="a")
    fleet.call()
    for name, replacement in pairwise("abcdefgh"[: MAX_DEATHS + 1]):
        assert fleet.answers == []
        fleet.peers[name].lose()
        fleet.expire(PAUSE_S)
        fleet.set(g=replacement)
    assert [getattr(answer, "code", "") for answer in fleet.answers] == ["internal"]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_links_that_fail_and_come_back_are_no_deaths(fleet: Fleet, names: str) -> None:
    """A process that is replaced has another address: who is there again at the same one has lived."""
    fleet.set(g=names)
    fleet.call()
    for _ in range(2 * MAX_DEATHS):
        lost = busy(fleet)
        lost.lose()
        fleet.expire(PAUSE_S)
        lost.ready = True
        fleet.replicas.retry_waiting()
    busy(fleet).answer()
    assert [type(answer) for answer in fleet.answers] == [Tensor]


def test_a_link_that_never_carries_the_rows_ends_them_too(fleet: Fleet) -> None:
    fleet.set(g="a")
    fleet.call()
    for _ in range(MAX_TRIES):
        assert fleet.answers == []
        fleet.peers["a"].lose()
        fleet.peers["a"].ready = True
        fleet.replicas.retry_waiting()
    assert [getattr(answer, "code", "") for answer in fleet.answers] == ["internal"]


def test_replicas_that_die_together_count_as_far_as_they_were_tried(fleet: Fleet) -> None:
    """A host that dies with all of them: by the end of the pause that is known, and the rows wait for another one."""
    fleet.set(g="abcdef")
    fleet.call()
    busy(fleet).lose()
    busy(fleet).lose()
    for peer in fleet.peers.values():
        peer.lose()
    fleet.expire()
    assert fleet.answers == []
    fleet.set(g="z")
    fleet.peers["z"].answer()
    assert [type(answer) for answer in fleet.answers] == [Tensor]


def test_replicas_that_are_retired_do_not_count(fleet: Fleet) -> None:
    """Nor do those that were gone before the rows could be sent."""
    fleet.set(g="a")
    fleet.call()
    for name in "bcdefg":
        fleet.set(g=name)
    for name in "hijk":
        busy(fleet).lose(with_rows=False)
        fleet.set(g=name)
    busy(fleet).answer()
    assert [type(answer) for answer in fleet.answers] == [Tensor]


def test_rows_are_not_sent_for_ever_whatever_becomes_of_the_replicas(fleet: Fleet) -> None:
    """A replica that they hang is dropped from the table, as one that is retired is."""
    fleet.set(g="0")
    fleet.call()
    for number in range(1, MAX_TRIES + 1):
        assert fleet.answers == []
        fleet.set(g=chr(ord("0") + number))
    assert [getattr(answer, "code", "") for answer in fleet.answers] == ["internal"]


def test_who_routes_rows_anew_hands_on_what_they_have_cost(fleet: Fleet) -> None:
    fleet.set(g="ab", h="c")
    given_back: list[Tries] = []
    fleet.replicas.call("g", Header(), ROWS_TD, fleet.answers.append, given_back.append)
    busy(fleet).lose()
    busy(fleet).lose()
    fleet.expire()
    assert [(tries.num, tries.deaths) for tries in given_back] == [(2, 2)]
    fleet.replicas.call(
        "h", Header(), ROWS_TD, fleet.answers.append, tries=Tries(3, tuple(FakePeer(ready=False) for _ in range(3)))
    )
    fleet.peers["c"].lose()
    assert [getattr(answer, "code", "") for answer in fleet.answers] == ["internal"]
