"""A part's word to the controller when something goes wrong: nothing ends its threads, and it alone ends nobody."""

import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from cluster import membership as membership_module
from cluster.membership import ControllerMembership, join_service
from cluster.messages import encode_table, pack_news
from cluster.plain import FormatError, pack
from cluster.resolve import Service
from cluster.secret import DataPlaneKeys
from transport.table import RoutingTable

Make = Callable[..., Service]


class Left:
    """The event that a part has left: after so many pauses, none of which is waited for."""

    def __init__(self, num_pauses: int) -> None:
        self.pauses: list[float] = []
        self._num_pauses = num_pauses

    def is_set(self) -> bool:
        return len(self.pauses) >= self._num_pauses

    def set(self) -> None:
        self._num_pauses = 0

    def wait(self, timeout_s: float) -> bool:
        self.pauses.append(timeout_s)
        return self.is_set()


class Script:
    """Answers a member's calls in turn: an exception is raised. The last answer is given again and again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: Iterator[object] = iter(())
        self.said: list[Any] = []
        self.killed = 0
        self.num_started = 0
        method = SimpleNamespace(remote=lambda *given: self.said.append(given))
        controller = SimpleNamespace(news=method, announce=method, leave=method)

        def start(name: str, record: object) -> Any:
            self.num_started += 1
            return controller

        def kill(actor: object, no_restart: bool) -> None:
            self.killed += 1

        context = SimpleNamespace(get_node_id=lambda: "host", get_actor_name=lambda: "actor")
        monkeypatch.setattr(membership_module, "controller_of", start)
        monkeypatch.setattr(membership_module, "data_plane_keys", lambda name: DataPlaneKeys(("6b" * 32,)))
        monkeypatch.setattr(membership_module, "stored_beat", lambda name: "7/100")
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "kill", kill)
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="app"))

    def _get(self, call: object, timeout: float) -> object:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


def member(make: Make, num_pauses: int) -> tuple[Any, Left]:
    membership, left = join_service(make())(), Left(num_pauses)
    membership._left = left  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return membership, left


def news(version: int) -> dict[str, Any]:
    return pack_news(encode_table(RoutingTable(version, epoch=1)))


def task_error(cause: Exception) -> Exception:
    return RayTaskError("announce", "traceback", cause).as_instanceof_cause()


def test_whatever_goes_wrong_the_next_table_is_taken_over(make: Make, script: Script) -> None:
    """A thread that ended would leave this process with its last table for ever, and nobody would hear of it."""
    membership, left = member(make, num_pauses=7)
    taken: list[int] = []

    def on_table(table: RoutingTable) -> None:
        if table.version == 1:
            raise ZeroDivisionError("nobody foresaw this")
        taken.append(table.version)

    failures = [
        news(1),
        TypeError("nor this"),
        GetTimeoutError("no answer"),
        {**news(2), "format": 99},
        SimpleNamespace(table=None, stopping=False),  # as a Manta of before versioned formats says it
        {**news(3), "table": b"{"},
    ]
    script.answers = iter([*failures, news(4), news(5), TypeError("the end")])
    membership._watch(on_table, lambda: None)
    assert taken == [4, 5]
    assert len(left.pauses) == 7
    known = [given[0] for given in script.said]
    assert known[-1] == (1, 5)


def test_stopping_ends_the_watch_and_is_told_last(make: Make, script: Script) -> None:
    membership, _ = member(make, num_pauses=3)
    told: list[object] = []
    script.answers = iter([news(1), pack_news(stopping=True)])
    membership._watch(lambda table: told.append(table.version), lambda: told.append("stop"))
    assert told == [1, "stop"]


def test_a_part_whose_figures_fail_is_heard_all_the_same(make: Make, script: Script) -> None:
    """Silence would have it killed."""
    membership, _ = member(make, num_pauses=4)
    figures = iter([{"running": 3}, OSError("no figures"), KeyError("none"), {"running": 4}])

    def snapshot() -> dict[str, object]:
        found = next(figures)
        if isinstance(found, Exception):
            raise found
        return dict(found)

    membership._snapshot = snapshot
    script.answers = iter([None] * 4)
    membership._announce("node", None, lambda: True)
    assert [said["data"]["snapshot"]["running"] for _, said in script.said] == [3, 3, 3, 4]


def test_whatever_goes_wrong_it_is_announced_again(make: Make, script: Script) -> None:
    membership, left = member(make, num_pauses=6)
    lives = iter([True, ValueError("cannot tell"), True, True, True, True])

    def asked() -> bool:
        found = next(lives)
        if isinstance(found, Exception):
            raise found
        return found

    script.answers = iter([TypeError("unforeseen"), task_error(FormatError("format 99")), None, None, None])
    membership._announce("node", None, asked)
    assert len(script.said) == 5
    assert left.pauses[-1] == membership_module.ANNOUNCE_INTERVAL_S
    assert script.killed == 0


def test_a_controller_that_cannot_begin_is_started_less_and_less_often(make: Make, script: Script) -> None:
    """Each start is a process; what ends the first one will most likely end the next."""
    membership, left = member(make, num_pauses=12)
    script.answers = iter([ActorDiedError()] * 12)
    membership._watch(lambda table: None, lambda: None)
    assert script.num_started == 12
    assert left.pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert left.pauses[-1] == 30.0


@pytest.mark.parametrize(("beats", "killed"), [("advance", 0), ("stand", 1), ("absent", 0)])
def test_a_member_that_is_not_answered_asks_another_witness(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch, beats: str, killed: int
) -> None:
    numbers = count()
    beat = {"advance": lambda: f"7/{next(numbers)}", "stand": lambda: "7/100", "absent": lambda: ""}[beats]
    monkeypatch.setattr(membership_module, "stored_beat", lambda name: beat())
    membership, _ = member(make, num_pauses=4)
    script.answers = iter([None, GetTimeoutError(), GetTimeoutError(), None])
    membership._announce("node", None, lambda: True)
    assert script.killed == killed


def test_the_next_keys_are_taken_and_told_at_once(make: Make, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    membership, left = member(make, num_pauses=2)
    old, new = membership.credentials().keys[0], b"n" * 32
    monkeypatch.setattr(
        membership_module, "data_plane_keys", lambda name: DataPlaneKeys((old.hex(), new.hex()), generation=1, stage=1)
    )
    script.answers = iter([{"keys_generation": 0}, {"keys_generation": 1}, {"keys_generation": 1}])
    membership._announce("node", None, lambda: True)
    assert [said["data"]["keys_generation"] for _, said in script.said] == [0, 0, 1]
    assert membership.credentials().keys == (old, new)
    assert left.pauses == [membership_module.ANNOUNCE_INTERVAL_S] * 2


@pytest.mark.parametrize("fault", ["format", "hang"])
def test_a_part_that_cannot_take_the_next_keys_is_not_silent(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The controller would take it for hung, and have it ended."""
    membership, left = member(make, num_pauses=4)
    held, old = threading.Event(), membership.credentials().keys

    def keys(name: str) -> DataPlaneKeys:
        if fault == "hang":
            held.wait(30.0)
        raise FormatError("has format 99")

    monkeypatch.setattr(membership_module, "data_plane_keys", keys)
    monkeypatch.setattr(membership_module, "STORE_TIMEOUT_S", 0.01)
    script.answers = iter([{"keys_generation": 1}] * 5)
    membership._announce("node", None, lambda: True)
    held.set()
    assert left.pauses == [membership_module.ANNOUNCE_INTERVAL_S] * 4
    assert membership.credentials().keys == old


def test_a_part_that_is_not_understood_is_not_silent(make: Make, script: Script) -> None:
    membership, left = member(make, num_pauses=6)
    script.answers = iter([None, *[task_error(FormatError("format 1"))] * 6])
    membership._announce("node", None, lambda: True)
    assert left.pauses == [membership_module.ANNOUNCE_INTERVAL_S] * 6
    assert script.killed == 0


def test_a_beat_that_cannot_be_had_in_time_ends_nobody(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership, _ = member(make, num_pauses=4)
    held = threading.Event()
    monkeypatch.setattr(membership_module, "stored_beat", lambda name: held.wait(30.0) and "7/100")
    monkeypatch.setattr(membership_module, "STORE_TIMEOUT_S", 0.01)
    script.answers = iter([None, *[GetTimeoutError()] * 3])
    membership._announce("node", None, lambda: True)
    held.set()
    assert script.killed == 0


def test_a_part_that_is_not_ready_yet_takes_the_next_keys_too(
    make: Make, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the old one it would be let in nowhere, never be ready, never announced, and never told."""
    membership, _ = member(make, num_pauses=1)
    new = DataPlaneKeys(("6e" * 32,), generation=3)
    monkeypatch.setattr(membership_module, "data_plane_keys", lambda name: new)
    script.answers = iter([news(1), TypeError("the end")])
    membership._watch(lambda table: None, lambda: None)
    assert membership.credentials().keys == new.as_bytes
    script.answers = iter([None])
    left = Left(1)
    membership._left = left
    membership._announce("node", None, lambda: True)
    assert script.said[-1][1]["data"]["keys_generation"] == 3


def test_what_is_said_is_plain_data_with_a_format(make: Make, script: Script) -> None:
    membership, _ = member(make, num_pauses=1)
    script.answers = iter([None])
    membership._announce("node", None, lambda: True)
    ((_, said),) = script.said
    assert set(said) == {"format", "manta", "data"}
    assert isinstance(membership, ControllerMembership)
    service = make()
    assert join_service(service).record == pack(service)
