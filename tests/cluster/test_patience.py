"""What a command waits for ends in time, and says what to do next."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from cluster import lifecycle, teardown
from cluster.lifecycle import Plan
from cluster.names import spec_name
from cluster.patience import Deadline
from cluster.plain import FormatError
from cluster.resolve import Service

Make = Callable[..., Service]


def test_a_question_that_blocks_is_given_up() -> None:
    blocked = threading.Event()
    with pytest.raises(TimeoutError, match=r"Serve has not answered within 0\.1 s \(--timeout\); end it"):
        Deadline(0.1).answer(blocked.wait, "Serve has not answered", "end it")
    blocked.set()


def test_an_answer_and_a_failure_come_through() -> None:
    assert Deadline(30.0).answer(lambda: 5, "no", "") == 5

    def fail() -> None:
        raise KeyError("shape")

    with pytest.raises(KeyError, match="shape"):
        Deadline(30.0).answer(fail, "no", "")


class Hanging:
    """A Ray whose controller answers nothing: every call takes as long as it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        method = SimpleNamespace(remote=lambda *given: None)
        controller = SimpleNamespace(status=method, service=method, apply=method, stop=method, exit=method)
        self.waited_s = 0.0
        monkeypatch.setattr(ray, "get_actor", lambda name, namespace: controller)
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(lifecycle, "joined", lambda address: nullcontext())
        monkeypatch.setattr(lifecycle, "services", lambda deadline: ["manta"])
        monkeypatch.setattr(time, "monotonic", lambda: self.waited_s)
        monkeypatch.setattr(time, "sleep", lambda s: None)

    def _get(self, call: object, timeout: float) -> object:
        self.waited_s += timeout
        raise GetTimeoutError("nothing came")


@pytest.mark.parametrize("command", ["status", "plan"])
def test_a_controller_that_does_not_answer(
    make: Make, ray_store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    hanging, spec = Hanging(monkeypatch), make().spec
    asked: Any = {
        "status": lambda: lifecycle.status(None, None, 25.0),
        "plan": lambda: lifecycle.plan(spec, None, 25.0),
    }
    with pytest.raises(TimeoutError, match=r"of manta has not answered within 25 s \(--timeout\); .*try again"):
        asked[command]()
    assert 25.0 <= hanging.waited_s < 27.0


def test_one_of_before_versioned_formats_is_explained_by_what_is_stored(
    ray_store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray started it again over this package; it is held in its beginning and cannot tell (`cluster.before`)."""
    hanging = Hanging(monkeypatch)
    ray_store[spec_name("manta", "good")] = b"\x80\x05pickled"
    with pytest.raises(FormatError, match="of before versioned formats.*what runs goes on"):
        lifecycle.status(None, None, 60.0)
    assert hanging.waited_s <= 10.0


def test_what_a_controller_does_not_understand_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    Hanging(monkeypatch)

    def get(call: object, timeout: float) -> object:
        raise RayTaskError("service", "Traceback", FormatError("format 99")).as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(FormatError) as caught:
        lifecycle.status(None, None)
    assert str(caught.value) == "format 99"


def test_a_change_that_takes_too_long_is_left_to_the_controller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the controller died in its midst, and no other one goes on with it."""
    old, new = make(), make(replicas=2)
    change = {"version": new.version, "state": "running", "stage": "letting go", "done": 0, "total": 0, "error": ""}
    now_s = iter(range(10_000_000))
    stages: list[str] = []
    Hanging(monkeypatch)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now_s)))
    monkeypatch.setattr(ray, "get", lambda call, timeout: None)
    monkeypatch.setattr(lifecycle, "running_service", lambda name: new)
    monkeypatch.setattr(lifecycle, "ask_controller", lambda *given: {"resize": change, "spec_version": old.version})
    planned = Plan(old, new, (SimpleNamespace(how="live", field="x"),))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TimeoutError, match=r"made \(still letting go\) within 40 s \(--timeout\); it goes on without"):
        lifecycle.apply(planned, None, lambda progress: stages.append(progress.stage), 40.0)
    assert set(stages) == {"letting go"}
    with pytest.raises(TimeoutError, match=rf"within {lifecycle.longest_s(planned):g} s"):
        lifecycle.apply(planned, None, lambda progress: None)
    limits = new.spec.limits
    assert lifecycle.longest_s(planned) > 4 * (limits.load_timeout_s + limits.drain_timeout_s)


def test_the_end_of_a_service_whose_serve_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be ended without it has been."""
    ended: list[str] = []
    blocked = threading.Event()
    monkeypatch.setattr(teardown, "find_controller", lambda name: None)
    monkeypatch.setattr(teardown, "_applications", blocked.wait)
    monkeypatch.setattr(teardown, "EXIT_TIMEOUT_S", 0.1)
    for name in ("kill_experts", "release_all", "forget_data_plane_key", "forget_service"):
        monkeypatch.setattr(teardown, name, lambda service, name=name: ended.append(name))
    with pytest.raises(TimeoutError, match="Serve has not answered within"):
        teardown.stop_service("manta", Deadline(0.1))
    blocked.set()
    assert ended == ["kill_experts", "release_all", "forget_data_plane_key", "forget_service"]


def test_a_service_of_which_only_expert_actors_are_left_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one/controller", "one/experts/abc/0/0", "two/experts/abc/0/0", "other"]
    monkeypatch.setattr(teardown, "_actor_names", lambda: names)
    assert teardown.services() == ["one", "two"]
