"""Changes of a fleet whose replicas are stood in for: what is waited for, what is left when it fails."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.application import ApplicationState
from cluster.fleet import ExpertFleet
from cluster.layout import layout_of
from cluster.resize import Resize
from cluster.resolve import Service
from cluster.room import Room
from tests.cluster.fake_experts import fleet_of

SMALL, LARGE = Room((2.0,), own=True), Room((32.0,), own=True)


def change(fleet: ExpertFleet, old: Service, new: Service, uncertain: bool = False) -> Resize:
    return Resize(fleet, old, new, lambda text, failed: None, lambda: None, uncertain)


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


class Serve:
    """Stands in for Ray Serve: what it was handed, and whether it can make it so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handed: list[Service] = []
        self.broken = False
        monkeypatch.setattr("cluster.resize.TAKEN_OVER_S", 0.0)
        monkeypatch.setattr("cluster.resize.numbers_held", lambda spec: {})
        monkeypatch.setattr("cluster.resize.make_application", lambda service, held: None)
        monkeypatch.setattr("cluster.resize.hand_over", lambda service, application: self.handed.append(service))
        monkeypatch.setattr("cluster.resize.application_state", self._state)

    def _state(self, *given: object) -> ApplicationState:
        if self.broken:
            raise RuntimeError("no part starts any more")
        return ApplicationState(3, 3, settled=True)


def test_a_change_is_done_whatever_becomes_of_what_leaves(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `manta apply`, which follows the status, would wait for ever."""

    async def run() -> None:
        old, new = make(per_actor=2), make(per_actor=2, slices=2)
        fleet, notes = fleet_of(old), list[str]()
        fleet.grow(layout_of(old), {0: 1, 1: 1})

        async def broken(keepers: object) -> None:
            raise ConnectionError("Ray is gone")

        monkeypatch.setattr(fleet, "retire", broken)
        resize = Resize(fleet, old, new, lambda text, failed: notes.append(text), lambda: None, False)
        await resize.run()
        assert (resize.status.state, resize.status.error) == ("done", "")
        assert any("Ray is gone" in note for note in notes)
        await fleet.stop()

    asyncio.run(run())


def test_going_back_ends_too_if_nothing_can_be_ended(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        old, new = make(per_actor=2), make(per_actor=2, replicas=2)
        fleet = fleet_of(old)
        fleet.grow(layout_of(old), {0: 1, 1: 1})

        async def broken(given: object) -> list[object]:
            raise ConnectionError("Ray is gone")

        monkeypatch.setattr(fleet, "retire", broken)
        monkeypatch.setattr(fleet, "use", broken)
        resize = change(fleet, old, new)
        await resize.run()
        assert resize.status.state == "failed"
        assert "no room" in resize.status.error
        assert "going back failed: Ray is gone" in resize.status.error
        await fleet.stop()

    asyncio.run(run())


def test_after_going_back_has_failed_the_next_change_works(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what Serve has then: it is handed the next one, though that says nothing new of Serve's parts."""
    serve = Serve(monkeypatch)

    async def run() -> None:
        old, new = make(per_actor=2), make(per_actor=2, on_missing="degrade")
        fleet = fleet_of(old)
        fleet.grow(layout_of(old), {0: 1, 1: 1})
        serve.broken = True
        failed = change(fleet, old, new)
        await failed.run()
        assert failed.status.state == "failed"
        assert failed.status.error.count("no part starts any more") == 2
        assert "and going back failed" in failed.status.error
        serve.broken = False
        again = change(fleet, old, old, uncertain=True)
        await again.run()
        assert (again.status.state, again.status.error) == ("done", "")
        assert serve.handed == [new, old, old]
        await fleet.stop()

    asyncio.run(run())
