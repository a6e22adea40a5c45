"""What a keeper knows of the replica that it keeps; the actor is stood in for."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.keeper import ExpertKeeper
from cluster.layout import layout_of
from cluster.resolve import Service
from cluster.secret import DataPlaneKeys
from experts.actor import Place
from transport.address import Address

PLACE = Place("host", 7, num_cores=4, started=True, core=3)


def answers(value: object) -> Any:
    async def answer(*given: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    return SimpleNamespace(remote=answer)


def keeper_of(service: Service) -> ExpertKeeper:
    layout = layout_of(service)

    async def unused() -> Any:
        raise RuntimeError("no room")

    async def published() -> None:
        pass

    def none(host: str, num_cores: int) -> int | None:
        raise AssertionError("it has its core already")

    report: Callable[..., None] = lambda *given, **more: None  # noqa: E731
    publish: Callable[[], Awaitable[None]] = published
    return ExpertKeeper(service, layout, layout.shards[0], 0, unused, none, report, publish)


def test_a_replica_that_runs_already_keeps_its_core_until_it_is_replaced(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = SimpleNamespace(
        place=answers(PLACE),
        address=answers(Address("host", "1", "", 0)),
        belongs_to=answers(True),
        start=answers(Address("host", "1", "", 0)),
        set_keys=answers(None),
        snapshot=answers({"loaded": 1.0}),
        watch=answers(RuntimeError("it does not serve any more")),
    )
    monkeypatch.setattr("cluster.keeper.data_plane_keys", lambda name: DataPlaneKeys(("",)))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)

    async def scenario() -> None:
        keeper = keeper_of(make())
        assert await keeper.adopt()
        assert (keeper.host, keeper.core) == ("host", 3), "before any other replica chooses"
        running = asyncio.create_task(keeper.run())
        while keeper.status()["state"] != "replacing":
            assert (keeper.host, keeper.core) == ("host", 3)
            await asyncio.sleep(0)
        assert (keeper.host, keeper.core) == ("", None)
        assert "does not serve any more" in keeper.error, "nothing else ended it"
        running.cancel()

    asyncio.run(scenario())


def test_a_replica_is_replaced_though_ray_fails_while_it_is_let_go_of(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that keeps it is nobody's to wait for: if it ended, the shard would stay without this replica."""
    actor = SimpleNamespace(place=answers(RuntimeError("it has just died")))
    events: list[str] = []

    def no_kill(actor: object, no_restart: bool) -> None:
        raise ConnectionError("Ray does not answer")

    monkeypatch.setattr("cluster.keeper.data_plane_keys", lambda name: DataPlaneKeys(("",)))
    monkeypatch.setattr("cluster.backoff.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(ray, "kill", no_kill)

    async def run() -> None:
        keeper = keeper_of(make())
        monkeypatch.setattr(keeper, "_report", lambda text, failed=False: events.append(text))
        monkeypatch.setattr(keeper, "_actor", actor)
        running = asyncio.create_task(keeper.run())
        while keeper.num_failures < 2:
            assert not running.done()
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), 30.0))
    assert any("Ray does not answer" in event for event in events)


def test_one_that_is_taken_over_and_not_found_again_yet_has_not_taken_the_keys(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = SimpleNamespace(place=answers(PLACE), address=answers(Address("host", "1", "", 0)), set_keys=answers(None))
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: actor)
    keys = DataPlaneKeys(("6b" * 32,))

    async def scenario() -> None:
        keeper = keeper_of(make())
        await keeper.set_keys(keys)  # nothing runs yet: it begins with them
        assert await keeper.adopt()
        with pytest.raises(RuntimeError, match="not been found again yet"):
            await keeper.set_keys(keys)
        keeper._actor = actor  # pyright: ignore[reportPrivateUsage]
        await keeper.set_keys(keys)

    asyncio.run(scenario())
