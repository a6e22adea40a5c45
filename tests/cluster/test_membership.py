"""A part's word to the controller, which is stood in for: when it leaves, and when nobody answers."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from cluster import membership as membership_module
from cluster.membership import join_service
from cluster.resolve import Service
from cluster.secret import DataPlaneKeys


class FakeController:
    """Notes what is sent to it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.announce, self.leave = self._noting("announce"), self._noting("leave")

    def _noting(self, what: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self.heard.append(what))


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> FakeController:
    fake = FakeController()
    context = SimpleNamespace(get_node_id=lambda: "host", get_actor_name=lambda: "actor")
    monkeypatch.setattr(membership_module, "controller_of", lambda name, record: fake)
    monkeypatch.setattr(membership_module, "data_plane_keys", lambda name: DataPlaneKeys(("6b" * 32,)))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: fake)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="app"))
    return fake


def _heartbeat() -> threading.Thread | None:
    return next((thread for thread in threading.enumerate() if thread.name == "manta-heartbeat"), None)


def test_who_leaves_while_it_is_asked_whether_it_lives_announces_itself_no_more(
    make: Callable[..., Service], controller: FakeController
) -> None:
    membership, asked, left = join_service(make())(), threading.Event(), threading.Event()

    def lives() -> bool:
        asked.set()
        return left.wait(30.0)

    membership.announce("gateway", None, dict, lives)
    assert asked.wait(30.0)
    thread = _heartbeat()
    assert thread is not None
    membership.leave()
    left.set()
    thread.join(30.0)
    assert not thread.is_alive()
    assert controller.heard == ["leave"]


def test_a_controller_that_does_not_start_holds_up_no_event_loop(
    make: Callable[..., Service], controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(membership_module, "SNAPSHOTS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(membership_module, "controller_of", lambda name, record: released.wait(30.0))

    async def scenario() -> None:
        asking = asyncio.create_task(join_service(make())().snapshots())
        await asyncio.sleep(0.05)
        assert not asking.done(), "others have their turn meanwhile"
        with pytest.raises(TimeoutError):
            await asking
        released.set()

    asyncio.run(scenario())
