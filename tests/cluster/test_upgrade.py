"""A controller that begins over what another Manta has stored: it goes on, or refuses and touches nothing."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster import control as control_module
from cluster import fleet as fleet_module
from cluster import refusal as refusal_module
from cluster.beginning import begin
from cluster.control import Control
from cluster.fleet import ExpertFleet
from cluster.layout import layout_of
from cluster.members import Announcement, Known
from cluster.messages import NO_TABLE, read_news
from cluster.names import expert_name, spec_name
from cluster.plain import FormatError, pack
from cluster.refusal import Refusal
from cluster.resolve import Service
from cluster.stored import store_known, store_service, stored_known
from tests.cluster.fake_experts import FakeKeeper
from transport.address import Address

Make = Callable[..., Service]
Store = dict[bytes, bytes]
OLD_FORMATS = Path(__file__).parent / "old_formats"
SAID = Announcement("node", Address("host", "node.sock", "", 0), 7, "ray-node", "app", "replica", {})


class Ray:
    """What a controller could do to what runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended: list[str] = []
        self.actors: list[str] = []
        context = SimpleNamespace(was_current_actor_reconstructed=True, get_node_id=lambda: "host")
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(ray, "kill", lambda actor, **given: self.ended.append(str(actor)))
        for module in (fleet_module, refusal_module):
            monkeypatch.setattr(module, "expert_actors", lambda service: list(self.actors))
        for module in (control_module, refusal_module):
            monkeypatch.setattr(module, "release_all", lambda service: self.ended.append("groups"))
            monkeypatch.setattr(module, "forget_data_plane_key", lambda service: self.ended.append("key"))
        monkeypatch.setattr(refusal_module, "kill_experts", lambda service: self.ended.append("experts"))
        monkeypatch.setattr(fleet_module, "_running_replicas", lambda service, layout: set[tuple[int, int]]())
        monkeypatch.setattr(ExpertFleet, "sweep", lambda fleet: self.ended.append("sweep"))
        monkeypatch.setattr(control_module, "SETTLE_S", 0.01)
        monkeypatch.setattr(control_module, "TICK_S", 0.01)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch, ray_store: Store) -> Ray:
    return Ray(monkeypatch)


def run(work: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30.0))


def newer_format(service: Service) -> bytes:
    return json.dumps({**pack(service), "format": 99, "manta": "9.9"}).encode()


def unknown_field(service: Service) -> bytes:
    record = pack(service)
    record["data"]["spec"]["experts"]["compression"] = "int4"
    return json.dumps({**record, "manta": "9.9"}).encode()


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (
            lambda service: (OLD_FORMATS / "service.pickle").read_bytes(),
            "of before versioned formats",
        ),
        (newer_format, r"has format 99, of Manta 9\.9"),
        (unknown_field, r"spec\.experts\.compression"),
        (lambda service: b"{", "of before versioned formats"),
    ],
    ids=["pickled", "newer format", "unknown field", "damaged"],
)
@pytest.mark.parametrize("which", ["good", "accepted"])
def test_what_cannot_be_read_is_left_alone(
    make: Make, ray_store: Store, fake_ray: Ray, stored: Callable[[Service], bytes], why: str, which: str
) -> None:
    service = make()
    store_service(service, "good")
    ray_store[spec_name(service.name, which)] = stored(service)
    before = dict(ray_store)

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        assert isinstance(control, Refusal)
        await control.announce("node", pack(SAID))
        assert read_news(await control.news(NO_TABLE, 0.05)) == read_news(await control.news(NO_TABLE, 0.05))
        assert read_news(await control.news(NO_TABLE, 0.05)).table is None, "members keep the table that they have"
        status = await control.status()
        assert status["state"] == "refused"
        for answer in (control.service(), control.apply(pack(service), "version"), control.ask("anything")):
            with pytest.raises(FormatError, match=rf"({why}).*what runs goes on"):
                await answer
        await asyncio.sleep(0.1)

    run(work)
    assert ray_store == before
    assert fake_ray.ended == []


def test_parts_of_before_versioned_formats_are_kept_waiting_and_not_answered(
    make: Make, ray_store: Store, fake_ray: Ray
) -> None:
    """They would not understand the answer; an error they take for a controller that is away for a moment."""
    service = make()
    ray_store[spec_name(service.name, "good")] = (OLD_FORMATS / "service.pickle").read_bytes()

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        await control.announce("node", SAID)  # pyright: ignore[reportArgumentType] - as they say it
        with pytest.raises(ValueError, match="of before versioned formats"):
            await control.news(-1, 0.05)  # pyright: ignore[reportArgumentType]
        assert await control.stop() == ["app", service.name]

    run(work)


def test_a_refused_service_can_be_stopped(make: Make, ray_store: Store, fake_ray: Ray) -> None:
    service = make()
    ray_store[spec_name(service.name, "good")] = newer_format(service)

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        await control.announce("node", pack(SAID))
        assert await control.stop() == ["app", service.name]
        assert read_news(await control.news(NO_TABLE, 30.0)).stopping

    run(work)
    assert ray_store == {}
    assert set(fake_ray.ended) == {"experts", "groups", "key"}


def test_members_and_events_that_cannot_be_read_cost_no_more_than_they_tell(
    make: Make, ray_store: Store, fake_ray: Ray
) -> None:
    service = make()
    store_service(service, "good")
    ray_store[spec_name(service.name, "known")] = (OLD_FORMATS / "known.pickle").read_bytes()
    ray_store[spec_name(service.name, "events")] = b'[{"time": 1}]'

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        assert isinstance(control, Control)
        texts = [event["text"] for event in (await control.status())["events"]]
        assert any("was restarted" in text for text in texts)

    run(work)


def test_what_a_controller_stores_another_one_reads(make: Make, ray_store: Store, fake_ray: Ray) -> None:
    service, known = make(), Known({"node": SAID}, {"gateway": {"prompt_tokens": 3}}, {"gone": SAID}, ("left",))
    store_known(service.name, known)
    assert stored_known(service.name) == known
    assert all(json.loads(data)["format"] for data in ray_store.values())


def test_expert_actors_of_another_layout_stay_until_those_of_this_one_serve(
    make: Make, fake_ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a later Manta starts them otherwise: routers keep the table that they have, and nothing is ended before."""
    service = make()
    store_service(service, "good")
    fake_ray.actors = [expert_name(service.name, "of another Manta", 0, 0)]
    address = Address("host", "1", "", 0)
    monkeypatch.setattr(FakeKeeper, "adopt", lambda keeper: asyncio.sleep(0, False))

    class Loading(FakeKeeper):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.address = None

    monkeypatch.setattr(fleet_module, "ExpertKeeper", Loading)

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        assert isinstance(control, Control)
        assert read_news(await control.news(NO_TABLE, 0.3)).table is None
        assert fake_ray.ended == []
        for keeper in control._fleet.replicas_of(layout_of(service)):
            keeper.address = address
        table = read_news(await control.news(NO_TABLE, 30.0)).table
        assert table is not None
        assert all(shard.replicas == (address,) for shard in table.shards)
        await asyncio.sleep(0)
        assert fake_ray.ended == ["sweep"]

    run(work)


def test_a_change_of_a_newer_manta_is_refused_whole(make: Make, fake_ray: Ray) -> None:
    service = make()
    store_service(service, "good")

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        record = pack(make(replicas=2))
        record["data"]["spec"]["experts"]["compression"] = "int4"
        with pytest.raises(FormatError, match=r"the changed service.*spec\.experts\.compression"):
            await control.apply(record, service.version)
        with pytest.raises(FormatError, match="does not know 'rotate'"):
            await control.ask("rotate")

    run(work)
    assert "experts" not in fake_ray.ended


def test_a_part_that_is_not_understood_is_reported_once(make: Make, fake_ray: Ray) -> None:
    service = make()

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=True)
        for _ in range(3):
            with pytest.raises(FormatError, match="what host/7 says has format 99"):
                await control.announce("host/7", {**pack(SAID), "format": 99})
        events = [event["text"] for event in (await control.status())["events"]]
        assert sum("a part is not understood" in text for text in events) == 1

    run(work)
