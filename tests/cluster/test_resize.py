"""Changes of a fleet whose replicas are stood in for: what is waited for, what is left when it fails."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster import resize as resize_module
from cluster.fleet import ExpertFleet
from cluster.layout import Layout, layout_of
from cluster.resize import Resize
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import ShardPlan, spec_from_dict
from tests.random_checkpoint import make_checkpoint
from transport.address import Address

SMALL, LARGE = Room((2.0,), own=True), Room((32.0,), own=True)


class FakeKeeper:
    """A replica that serves at once, if there is room for it: there is room for the first of each shard."""

    def __init__(self, service: Service, layout: Layout, shard: ShardPlan, replica: int, *rest: object) -> None:
        self.layout, self.shard, self.replica = layout, shard, replica
        self.name = f"shard {shard.index}, replica {replica}"
        self.core = self.reservation = None
        self.leaving = False
        self.served = replica == 0
        self.address: Address | None = Address("host", "1", "", 0) if self.served else None
        self.num_failures = 0
        self.error = "" if self.served else "no room"
        self.num_runs = 0

    async def run(self) -> None:
        self.num_runs += 1
        await asyncio.Event().wait()

    async def drain(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def take_service(self, service: Service) -> None:
        pass

    def status(self) -> dict[str, object]:
        return {"state": "placing"}


@pytest.fixture
def make(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Service]:
    make_checkpoint(tmp_path / "model", seed=seed, num_experts=4)
    monkeypatch.setattr(fleet_module, "ExpertKeeper", FakeKeeper)
    for name in ("release", "release_layout"):
        monkeypatch.setattr(fleet_module, name, lambda *given: None)
    monkeypatch.setattr(resize_module, "GRACE_S", 0.2)

    def service(room: Room = SMALL, **experts: Any) -> Service:
        spec = {"model": {"path": str(tmp_path / "model")}, "experts": experts, "limits": {"load_timeout_s": 0.3}}
        return resolve(spec_from_dict(spec), room)

    return service


async def published() -> None:
    pass


def fleet_of(service: Service) -> ExpertFleet:
    return ExpertFleet(service, lambda *given, **more: None, published)


def change(fleet: ExpertFleet, old: Service, new: Service) -> Resize:
    return Resize(fleet, old, new, lambda text, failed: None, lambda: None, uncertain=False)


def test_a_replica_that_only_the_load_asks_for_is_not_waited_for(make: Callable[..., Service]) -> None:
    async def run() -> None:
        old = make(per_actor=2, replicas={"min": 1, "max": 4})
        new = make(per_actor=2, replicas={"min": 1, "max": 3})
        fleet = fleet_of(old)
        fleet.grow(layout_of(old), {0: 2, 1: 1})  # there is no room for the second one of shard 0
        resize = change(fleet, old, new)
        await resize.run()
        assert (resize.status.state, resize.status.error) == ("done", "")
        assert fleet.counts == {0: 2, 1: 1}, "the load still asks for it"
        await fleet.stop()

    asyncio.run(run())


def test_a_replica_that_the_file_asks_for_is_waited_for(make: Callable[..., Service]) -> None:
    async def run() -> None:
        old, new = make(per_actor=2), make(per_actor=2, replicas=2)
        fleet = fleet_of(old)
        fleet.grow(layout_of(old), {0: 1, 1: 1})
        resize = change(fleet, old, new)
        await resize.run()
        assert resize.status.state == "rolled back"
        assert "no room" in resize.status.error
        assert fleet.counts == {0: 1, 1: 1}
        await fleet.stop()

    asyncio.run(run())


def test_a_layout_that_does_not_fit_the_service_ends_the_change(make: Callable[..., Service]) -> None:
    """It would fit in another room: there, `per_actor: auto` is another number."""

    async def run() -> None:
        old = make(per_actor=2)
        large = make(slices=2, room=LARGE, overrides={0: {"replicas": 2}, 1: {"replicas": 3}})
        assert layout_of(large)
        new = replace(large, room=SMALL)
        fleet = fleet_of(old)
        fleet.grow(layout_of(old), {0: 1, 1: 1})
        resize = change(fleet, old, new)
        await resize.run()
        assert resize.status.state == "rolled back"
        assert "experts.overrides" in resize.status.error
        await fleet.stop()

    asyncio.run(run())


def test_a_replica_that_leaves_is_not_started_again(make: Callable[..., Service]) -> None:
    async def run() -> None:
        service = make(per_actor=2)
        layout = layout_of(service)
        fleet = fleet_of(service)
        fleet.grow(layout, {0: 2, 1: 1})
        await asyncio.sleep(0)
        leaving: Any = next(one for one in fleet.replicas_of(layout) if one.replica == 1)
        retiring = asyncio.create_task(fleet.retire([leaving]))
        while not retiring.done():  # at each moment of its end, another change may ask for what is missing
            fleet.grow(layout, {0: 1, 1: 1})
            await asyncio.sleep(0)
        assert leaving.num_runs == 1
        assert fleet.counts == {0: 1, 1: 1}
        await fleet.stop()

    asyncio.run(run())
