"""A controller that begins over what another Manta has stored: it goes on, or refuses and touches nothing."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster import before as before_module
from cluster import beginning as beginning_module
from cluster import control as control_module
from cluster import fleet as fleet_module
from cluster import hearing as hearing_module
from cluster import plain as plain_module
from cluster import refusal as refusal_module
from cluster.beginning import begin
from cluster.control import Control
from cluster.fleet import ExpertFleet
from cluster.layout import layout_of
from cluster.ledger import Ledger
from cluster.members import Announcement, Known
from cluster.messages import NO_TABLE, pack_news, read_news
from cluster.names import expert_name, key_name, spec_name
from cluster.plain import FormatError, Formats, pack
from cluster.refusal import Refusal
from cluster.resolve import Service
from cluster.secret import data_plane_keys, new_keys, store_data_plane_keys
from cluster.stored import store_known, store_service, stored_beat, stored_known
from tests.cluster.fake_experts import FakeKeeper
from transport.address import Address

Make = Callable[..., Service]
Store = dict[bytes, bytes]
OLD_FORMATS = Path(__file__).parent / "old_formats"
ANNOUNCED = Announcement("node", Address("host", "node.sock", "", 0), 7, "ray-node", "app", "replica", {})


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
        monkeypatch.setattr(beginning_module, "num_gpus", lambda: 0.0)
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
        await control.announce("node", pack(ANNOUNCED))
        assert read_news(await control.news(NO_TABLE, 0.05)) == read_news(await control.news(NO_TABLE, 0.05))
        assert read_news(await control.news(NO_TABLE, 0.05)).table is None, "members keep the table that they have"
        status = await control.status()
        assert status["state"] == "refused"
        for answer in (control.service(), control.apply(pack(service), "version"), control.ask("anything")):
            with pytest.raises(FormatError, match=rf"({why}).*what runs goes on"):
                await answer
        await asyncio.sleep(0.1)

    run(work)
    assert {key: value for key, value in ray_store.items() if not key.endswith(b"/beat")} == before
    assert fake_ray.ended == []


def test_parts_of_before_versioned_formats_are_kept_waiting_and_not_answered(
    make: Make, ray_store: Store, fake_ray: Ray
) -> None:
    """They would not understand the answer; an error they take for a controller that is away for a moment."""
    service = make()
    ray_store[spec_name(service.name, "good")] = (OLD_FORMATS / "service.pickle").read_bytes()

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        await control.announce("node", ANNOUNCED)  # pyright: ignore[reportArgumentType] - as they say it
        with pytest.raises(ValueError, match="of before versioned formats"):
            await control.news(-1, 0.05)  # pyright: ignore[reportArgumentType]
        assert await control.stop() == ["app", service.name]

    run(work)


def test_a_controller_of_before_versioned_formats_is_held_until_its_service_is_stopped(
    ray_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, looks, ended = spec_name("old", "good"), [0], [0]
    ray_store[good] = (OLD_FORMATS / "service.pickle").read_bytes()

    def pause(pause_s: float) -> None:
        looks[0] += 1
        if looks[0] == 5:
            del ray_store[good]

    def leave(code: int) -> None:
        ended[0] = looks[0]
        raise SystemExit(code)

    monkeypatch.setattr(before_module, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(before_module, "os", SimpleNamespace(_exit=leave))
    with pytest.raises(SystemExit):
        Ledger(SimpleNamespace(spec=SimpleNamespace(name="old")), False)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert ended == [5]


@pytest.mark.parametrize(
    ("keys", "why"),
    [(json.dumps({"format": 99, "manta": "9.9"}).encode(), r"has format 99, of Manta 9\.9"), (b"\x80", "of before")],
    ids=["newer format", "damaged"],
)
def test_keys_that_cannot_be_read_are_refused_before_anything_is_written_anew(
    make: Make, ray_store: Store, fake_ray: Ray, keys: bytes, why: str
) -> None:
    """Or the package of before, put back, could not read what this one has written."""
    service = make()
    store_service(service, "good")
    ray_store[key_name(service.name)] = keys
    before = dict(ray_store)

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        assert isinstance(control, Refusal)
        with pytest.raises(FormatError, match=f"the data-plane keys of {service.name} .*{why}"):
            await control.service()

    run(work)
    assert ray_store == before
    assert fake_ray.ended == []


def test_a_refusal_shows_that_it_hears_members_and_names_the_expert_actors_that_have_ended(
    make: Make, ray_store: Store, fake_ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_module, "TICK_S", 0.01)
    service = make()
    ray_store[spec_name(service.name, "good")] = newer_format(service)
    fake_ray.actors = [expert_name(service.name, "layout", shard, 0) for shard in range(2)]

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        beats: set[str] = set()
        for _ in range(2):
            await control.announce("node", pack(ANNOUNCED))
            await asyncio.sleep(0.2)
            beats.add(stored_beat(service.name))
        assert len(beats - {""}) == 2
        gone = fake_ray.actors.pop()
        events = (await control.status())["events"]
        failed = [event["text"] for event in events if event["failed"]]
        assert [f"{gone} has ended, and is not replaced" in text for text in failed] == [False, True]
        assert any(text["text"] == f"1 expert actors run: {fake_ray.actors[0]}" for text in events)

    run(work)


def test_a_refused_service_can_be_stopped(make: Make, ray_store: Store, fake_ray: Ray) -> None:
    service = make()
    ray_store[spec_name(service.name, "good")] = newer_format(service)

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=False)
        await control.announce("node", pack(ANNOUNCED))
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
    service = make()
    known = Known({"node": ANNOUNCED}, {"gateway": {"prompt_tokens": 3}}, {"gone": ANNOUNCED}, ("left",))
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


def test_a_part_that_does_not_understand_the_controller_is_reported_once(
    make: Make, fake_ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing_module, "SAID", Formats(newest=2, oldest=1))

    async def work() -> None:
        control = begin("service", pack(make()), fresh=True)
        for _ in range(3):
            await control.announce("host/7", {**pack(ANNOUNCED), "manta": "0.9"})
        events = [event["text"] for event in (await control.status())["events"]]
        assert sum("node 7 is of Manta 0.9, which cannot read" in text for text in events) == 1

    run(work)


def test_members_of_before_follow_a_controller_that_stores_another_format(
    make: Make, ray_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What parts say to each other, and the keys that they share, have a number of their own."""
    monkeypatch.setattr(plain_module.pack, "__defaults__", (Formats(newest=2, oldest=1),))  # as if FORMAT were raised
    assert pack(make())["format"] == 2
    keys = new_keys()
    store_data_plane_keys("service", keys)
    assert data_plane_keys("service") == keys
    assert read_news(pack_news(stopping=True)).stopping
    assert (pack_news()["format"], json.loads(ray_store[key_name("service")])["format"]) == (1, 1)


def test_a_part_that_is_not_understood_is_reported_once(make: Make, fake_ray: Ray) -> None:
    service = make()

    async def work() -> None:
        control = begin(service.name, pack(service), fresh=True)
        for _ in range(3):
            with pytest.raises(FormatError, match="what host/7 says has format 99"):
                await control.announce("host/7", {**pack(ANNOUNCED), "format": 99})
        events = [event["text"] for event in (await control.status())["events"]]
        assert sum("a part is not understood" in text for text in events) == 1

    run(work)
