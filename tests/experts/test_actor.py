"""The expert actor around its server, without Ray: whom it answers, and when it leaves."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import experts.actor
from experts.actor import ExpertSettings, Place
from experts.server import ExpertServer
from tests.experts.shards import random_shard
from tests.experts.test_server import running
from tests.transport.driving import connected
from transport.credentials import Credentials
from transport.loop import Loop
from transport.pulse import WAIT_S

TICK_S = 0.02
ORPHAN_TIMEOUT_S = 0.2
# What Ray makes of the class is called through Ray only.
Actor: Any = experts.actor.ExpertActor.__ray_metadata__.modified_class  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def server(seed: int) -> Iterator[ExpertServer]:
    with running(random_shard(seed)) as started:
        yield started


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when the actor ends its process; the actor's ticks are short."""
    event = asyncio.Event()
    monkeypatch.setattr(experts.actor, "TICK_S", TICK_S)
    monkeypatch.setattr(os, "_exit", lambda code: event.set())
    return event


def actor_of(server: ExpertServer, orphan_timeout_s: float = ORPHAN_TIMEOUT_S) -> Any:
    """An actor that has loaded; nothing is read of its checkpoint."""
    config: Any = None
    actor = Actor(ExpertSettings(Path(), config, (0,), 0, 1, "float32", "cpu", orphan_timeout_s, loopback=True))
    actor._server = server
    return actor


async def until_seen(server: ExpertServer) -> None:
    """Waits until the server's thread has seen that a router is connected."""
    async with asyncio.timeout(30.0):
        while not server.has_routers:
            await asyncio.sleep(0.01)


def test_without_a_controller_it_stays_while_a_router_is_connected(server: ExpertServer, left: asyncio.Event) -> None:
    """Though no rows come: the service is idle."""
    loop = Loop()

    async def scenario() -> None:
        router = connected(loop, server.address)
        actor = actor_of(server)
        await asyncio.sleep(5 * ORPHAN_TIMEOUT_S)
        assert not left.is_set()
        router.close()
        await asyncio.wait_for(left.wait(), 30.0)
        await actor._orphan_watch

    asyncio.run(scenario())
    loop.close()


def test_whose_thread_hangs_leaves_too(server: ExpertServer, left: asyncio.Event) -> None:
    """It does not see that the routers have left."""
    loop, released = Loop(), threading.Event()

    async def scenario() -> None:
        router = connected(loop, server.address)
        await until_seen(server)
        server._loop.post(released.wait)  # pyright: ignore[reportPrivateUsage]
        router.close()
        actor = actor_of(server)
        assert server.has_routers, "as it seems to be"
        await asyncio.wait_for(left.wait(), 30.0)
        assert server.has_routers, "it has not seen the router leave, and leaves in spite of it"
        released.set()
        await actor._orphan_watch

    asyncio.run(scenario())
    loop.close()


def test_it_does_not_answer_while_its_thread_hangs(server: ExpertServer) -> None:
    released = threading.Event()

    async def scenario() -> None:
        actor = actor_of(server, orphan_timeout_s=600.0)
        assert (await actor.snapshot())["loaded"] == 1.0
        server._loop.post(released.wait)  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(2.0)  # it has computed until now
        answer = asyncio.ensure_future(actor.snapshot())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(answer), 3 * WAIT_S)
        released.set()
        assert (await asyncio.wait_for(answer, 30.0))["loaded"] == 1.0
        actor._orphan_watch.cancel()

    asyncio.run(scenario())


def test_it_tells_the_core_that_it_was_started_on(server: ExpertServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another controller cannot know: the first one's word holds."""
    context = SimpleNamespace(get_node_id=lambda: "host")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(experts.actor, "available_cores", lambda: 4)

    async def scenario() -> None:
        actor = actor_of(server, orphan_timeout_s=600.0)
        actor._server = None
        actor._load = lambda credentials, core: server
        assert await actor.place() == Place("host", os.getpid(), 4)
        for core in (2, 0):
            await actor.start(b"k" * 32, core)
            assert await actor.place() == Place("host", os.getpid(), 4, started=True, core=2)
        actor._orphan_watch.cancel()

    asyncio.run(scenario())


def test_its_keys_can_be_changed_while_it_loads_and_while_it_serves(
    monkeypatch: pytest.MonkeyPatch, server: ExpertServer
) -> None:
    old, new, newest = b"o" * 32, b"n" * 32, b"w" * 32
    given: list[Credentials] = []
    go_on = threading.Event()

    def load(credentials: Credentials, core: int | None) -> ExpertServer:
        given.append(credentials)
        assert go_on.wait(30.0)
        return server

    async def change() -> None:
        actor = actor_of(server)
        actor._server = None
        monkeypatch.setattr(actor, "_load", load)
        starting = asyncio.create_task(actor.start(old, None))
        while not given:
            await asyncio.sleep(0.01)
        await actor.set_keys((new, old))
        assert given[0].keys == (new, old)
        go_on.set()
        await starting
        await actor.set_keys((newest, new))
        assert given[0].keys == (newest, new)
        assert await actor.belongs_to(actor._settings, newest)
        actor._orphan_watch.cancel()

    asyncio.run(change())
