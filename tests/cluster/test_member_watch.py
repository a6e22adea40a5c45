"""Watching over members, without Ray: who is dropped, who is ended, and how long nobody may be there."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cluster import member_watch as watch_module
from cluster.member_watch import STOPPED_S, TICK_S, MemberWatch
from cluster.members import Announcement, Members
from cluster.spec import LimitsSpec
from transport.address import Address

SAID = Announcement("node", Address("host", "node.sock", "", 0), 7, "ray-node", "app", "replica", {})
LIMITS = LimitsSpec(heartbeat_timeout_s=3, orphan_timeout_s=5, load_timeout_s=20)
SILENCE_S = 4.0  # LIMITS' heartbeat_timeout_s, and the second that lies between two announcements


class Notes:
    """The events that were noted; the failures apart."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.failures: list[str] = []

    def __call__(self, text: str, failed: bool = False) -> None:
        (self.failures if failed else self.texts).append(text)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def watch(members: Members, notes: Notes) -> MemberWatch:
    watch = MemberWatch("manta", members, notes)
    watch.begin()
    return watch


@pytest.fixture
def set_time(monkeypatch: pytest.MonkeyPatch, watch: MemberWatch) -> Callable[[float], None]:
    """Sets what the watch takes for the time, in seconds since it began."""
    started_s = watch._looked_s

    class Clock:
        now_s = started_s

        def monotonic(self) -> float:
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(watch_module, "time", clock)

    def set_to(seconds: float) -> None:
        clock.now_s = started_s + seconds

    return set_to


@pytest.fixture
def heard_once(watch: MemberWatch, members: Members) -> None:
    """A node that is heard as the watch begins, and never again."""
    members.heard("node", SAID, watch._looked_s)


def ticks_until_over(watch: MemberWatch, at_most: int) -> int | None:
    """Returns how many ticks it took; None: it is not over after `at_most` of them."""
    return next((tick for tick in range(1, at_most + 1) if asyncio.run(watch.is_over(LIMITS))), None)


def serve_answers(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], bool]) -> None:
    monkeypatch.setattr(watch_module, "wanted_by_serve", lambda name: answer())


@pytest.mark.usefixtures("heard_once")
def test_silent_members_are_let_go_of_and_ended_if_they_stay_silent(
    watch: MemberWatch,
    notes: Notes,
    set_time: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: name)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    dropped, ended = [], []
    for second in range(1, 12):
        set_time(second)
        if watch.drop_silent(LIMITS):
            dropped.append(second)
        if watch.end_hung(LIMITS):
            ended.append(second)
    assert (dropped, ended) == ([SILENCE_S + TICK_S], [2 * SILENCE_S + TICK_S])
    assert killed == [("replica", True)]
    assert notes.failures == ["node 7 has fallen silent", "node 7 hangs; it is replaced"]


@pytest.mark.usefixtures("heard_once")
def test_a_pause_of_its_own_is_held_against_nobody(watch: MemberWatch, set_time: Callable[[float], None]) -> None:
    set_time(60.0)
    assert not watch.drop_silent(LIMITS)
    set_time(61.0)
    assert not watch.drop_silent(LIMITS)


@pytest.mark.usefixtures("heard_once")
def test_a_pause_between_looking_and_ending_is_held_against_nobody(
    watch: MemberWatch, set_time: Callable[[float], None]
) -> None:
    for second in range(1, 6):
        set_time(second)
        dropped = watch.drop_silent(LIMITS)
    assert dropped
    set_time(60.0)
    assert not watch.end_hung(LIMITS)


@pytest.mark.usefixtures("heard_once")
def test_who_was_not_heard_while_nobody_looked_is_dropped_at_once(
    watch: MemberWatch, set_time: Callable[[float], None]
) -> None:
    """The others were: it was not this process that stood still."""
    set_time(60.0)
    watch.begin()
    set_time(61.0)
    assert watch.drop_silent(LIMITS)


@pytest.mark.usefixtures("heard_once")
def test_one_that_cannot_be_ended_is_tried_again_and_keeps_no_other_from_it(
    watch: MemberWatch,
    members: Members,
    notes: Notes,
    set_time: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    def fails_once(name: str, namespace: str) -> str:
        tried.append(name)
        if tried.count("replica") == 1 and name == "replica":
            raise RayActorError
        if name == "gone":
            raise ValueError
        return name

    monkeypatch.setattr(ray, "get_actor", fails_once)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    members.heard("router", Announcement("router", None, 8, "ray-node", "app", "gone", {}), watch._looked_s)
    for second in range(1, 14):
        set_time(second)
        watch.drop_silent(LIMITS)
        watch.end_hung(LIMITS)
    assert tried == ["replica", "gone", "replica"]
    assert notes.failures[2:] == ["node 7 hangs; it is replaced"], "one that has gone by itself is not said to hang"


@pytest.mark.parametrize(("joined", "patience_s"), [(False, LIMITS.load_timeout_s), (True, LIMITS.orphan_timeout_s)])
def test_a_service_that_nobody_wants_is_over_after_a_while(
    watch: MemberWatch, members: Members, joined: bool, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose parts have never been there may still be loading."""
    serve_answers(monkeypatch, lambda: False)
    if joined:
        members.heard("node", SAID, 0.0)
        assert ticks_until_over(watch, 10) is None
        members.remove("node")
    assert ticks_until_over(watch, 100) == patience_s + TICK_S


def test_what_it_stays_for_is_noted_once_each_time_and_is_no_failure(
    watch: MemberWatch, members: Members, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    serve_answers(monkeypatch, lambda: not asked.append(1))
    assert ticks_until_over(watch, 100) is None
    assert len(asked) == 100 // (LIMITS.load_timeout_s + TICK_S)
    assert (len(notes.texts), notes.failures) == (1, [])
    assert "staying" in notes.texts[0]
    members.heard("node", SAID, 0.0)
    assert ticks_until_over(watch, 1) is None
    members.remove("node")
    assert ticks_until_over(watch, 100) is None
    assert (len(notes.texts), notes.failures) == (2, [])


@pytest.mark.parametrize("error", [RayActorError(), TimeoutError()])
def test_an_error_of_serve_s_is_no_answer(
    watch: MemberWatch, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise error

    serve_answers(monkeypatch, fail)
    assert ticks_until_over(watch, 100) is None


def test_one_that_is_being_stopped_waits_anew_and_asks_nobody(
    watch: MemberWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    serve_answers(monkeypatch, lambda: not asked.append(1))
    assert ticks_until_over(watch, 20) is None
    watch.stop()
    assert ticks_until_over(watch, 100) == STOPPED_S + TICK_S
    assert asked == []


def test_one_that_is_stopped_while_it_asks_is_not_over(watch: MemberWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's answer is then that the application is being deleted; parts of it may still be starting."""

    def stopped_meanwhile() -> bool:
        watch.stop()
        return False

    serve_answers(monkeypatch, stopped_meanwhile)
    assert ticks_until_over(watch, 100) == LIMITS.load_timeout_s + TICK_S + STOPPED_S + TICK_S
