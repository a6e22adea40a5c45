"""The controller without Ray: how it begins, what it stores, and how it ends."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster import beginning as beginning_module
from cluster import control as control_module
from cluster import fleet as fleet_module
from cluster import ledger as ledger_module
from cluster import member_watch as watch_module
from cluster.beginning import begin
from cluster.control import Control
from cluster.fleet import ExpertFleet
from cluster.members import Announcement, Known
from cluster.messages import NO_TABLE, read_news
from cluster.plain import pack, unpack
from cluster.resolve import Service
from cluster.secret import data_plane_keys
from cluster.stored import store_known, store_service
from transport.address import Address

NODE = Address("host", "node.sock", "", 0)
SAID = Announcement("node", NODE, 7, "ray-node", "app", "replica", {})


@pytest.fixture(autouse=True)
def no_ray(ray_store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its store, nothing of Ray is there."""
    restarted_by_ray(monkeypatch, False)
    monkeypatch.setattr(beginning_module, "num_gpus", lambda: 0.0)
    monkeypatch.setattr(fleet_module, "_running_replicas", lambda service, layout: set())
    monkeypatch.setattr(fleet_module, "expert_actors", lambda service: [])
    monkeypatch.setattr(ExpertFleet, "sweep", lambda fleet: None)
    monkeypatch.setattr(control_module, "SETTLE_S", 0.5)


def restarted_by_ray(monkeypatch: pytest.MonkeyPatch, restarted: bool) -> None:
    context = SimpleNamespace(was_current_actor_reconstructed=restarted, get_node_id=lambda: "node")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


def scenario(work: Callable[[Any], Any], service: Service, fresh: bool = False) -> None:
    """Runs `work` with a controller, whose tasks end with it."""

    async def run() -> None:
        await work(begin(service.name, pack(service), fresh))

    asyncio.run(run())


def test_gpus_that_are_not_used_are_its_first_event_and_said_once(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning_module, "num_gpus", lambda: 8.0)
    said: list[list[str]] = []

    async def work(actor: Any) -> None:
        status = await actor.status()
        said.append([event["text"] for event in status["events"] if "Ray has 8 GPUs, and" in event["text"]])

    service = make()
    scenario(work, service)
    store_service(service, "good")
    scenario(work, service)
    assert [len(texts) for texts in said] == [1, 0]
    assert "attention: {num_gpus: " in said[0][0]


@pytest.mark.parametrize("fresh", [False, True])
def test_one_that_a_member_starts_waits_for_the_others(make: Callable[..., Service], fresh: bool) -> None:
    """Ray has not restarted it, but there was one before: its tables are in use."""
    service = make()
    store_service(service, "good")

    async def work(actor: Any) -> None:
        if fresh:  # what is stored is of an earlier service of this name
            assert read_news(await actor.news(NO_TABLE, 0.2)).table.nodes == ()
            return
        assert read_news(await actor.news(NO_TABLE, 0.2)).table is None
        await actor.announce("node", pack(SAID))
        assert read_news(await actor.news(NO_TABLE, 30.0)).table.nodes == (NODE,)

    scenario(work, service, fresh)


def test_one_that_ray_restarts_goes_on_with_what_was_accepted(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments are those of the beginning: `fresh`, and a service that may have been changed since."""
    first, later = make(), make(replicas={"min": 2, "max": 2})
    store_service(later, "good")
    restarted_by_ray(monkeypatch, True)

    async def work(actor: Any) -> None:
        assert unpack(Service, await actor.service(), "it").version == later.version
        assert read_news(await actor.news(NO_TABLE, 0.2)).table is None

    scenario(work, first, fresh=True)


def test_the_key_is_changed_once_all_parts_could_be_heard(make: Callable[..., Service]) -> None:
    """Else nobody would be waited for: the old key would be valid no more before anybody has heard of the new one."""
    service = make()
    store_service(service, "good")

    async def work(actor: Any) -> None:
        before = data_plane_keys(service.name)
        with pytest.raises(ValueError, match="is being changed or started; try again"):
            await actor.ask("rotate_keys")
        await asyncio.sleep(0.05)
        assert data_plane_keys(service.name) == before
        await actor.announce("node", pack(SAID))
        await actor.news(NO_TABLE, 30.0)
        await actor.ask("rotate_keys")
        while data_plane_keys(service.name).generation == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert before.keys[0] in data_plane_keys(service.name).keys, "the node has not taken the next one"

    scenario(work, service)


def test_who_takes_part_is_stored_only_when_it_has_changed(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[object] = []
    monkeypatch.setattr(ledger_module, "store_known", lambda name, known: puts.append(known))

    async def work(actor: Any) -> None:
        await actor.announce("node", pack(SAID))
        for tokens, num_puts in ((1, 2), (1, 2), (2, 3)):
            await actor.snapshots("node", {"preemptions_total": tokens})
            assert len(puts) == num_puts

    scenario(work, make())


def test_a_member_that_only_an_earlier_one_has_heard_is_ended(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent from the first look on, and that look comes long after this machine was started."""
    killed: list[object] = []
    ended = asyncio.Event()

    def kill(actor: object, no_restart: bool) -> None:
        killed.append(actor)
        ended.set()

    monkeypatch.setattr(watch_module, "_silence_s", lambda limits: 0.1)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: name)
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    service = make()
    store_service(service, "good")
    store_known(service.name, Known(said={"node": SAID}))

    async def work(actor: Any) -> None:
        await asyncio.wait_for(ended.wait(), 30.0)
        assert killed[0] == SAID.actor

    scenario(work, service)


def test_one_that_is_being_stopped_writes_nothing(
    make: Callable[..., Service], ray_store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it may give up waiting, and forget the service meanwhile."""
    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    for name in ("release_all", "forget_data_plane_key"):
        monkeypatch.setattr(control_module, name, lambda service: None)
    blocked = asyncio.Event()

    async def wait_long(fleet: ExpertFleet) -> None:
        await blocked.wait()

    monkeypatch.setattr(ExpertFleet, "stop", wait_long)

    async def work(actor: Any) -> None:
        await actor.announce("node", pack(SAID))
        stopping = asyncio.create_task(actor.stop())
        await asyncio.sleep(0.05)
        ray_store.clear()
        await actor.leave("node", {"preemptions_total": 3})
        await asyncio.sleep(0.05)
        assert ray_store == {}
        blocked.set()
        await stopping

    scenario(work, make())


def test_one_that_is_stopped_waits_anew_for_the_members_to_be_gone(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it was alone before: parts that are just starting would start another controller."""
    ended = asyncio.Event()

    async def end(actor: Any) -> None:
        ended.set()

    async def nothing(fleet: ExpertFleet) -> None:
        pass

    monkeypatch.setattr(control_module, "TICK_S", 0.01)
    monkeypatch.setattr(watch_module, "wanted_by_serve", lambda name: True)
    for name in ("release_all", "forget_data_plane_key"):
        monkeypatch.setattr(control_module, name, lambda service: None)
    monkeypatch.setattr(ExpertFleet, "stop", nothing)
    monkeypatch.setattr(Control, "_end", end)

    async def work(actor: Any) -> None:
        while actor._watch._alone_s < 2 * watch_module.STOPPED_S:
            await asyncio.sleep(0.01)
        await actor.stop()
        await asyncio.sleep(0.1)
        assert not ended.is_set()
        await asyncio.wait_for(ended.wait(), 30.0)

    scenario(work, make())
