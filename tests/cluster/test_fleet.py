"""Which replicas a fleet starts, waits for and lets go of; they are stood in for."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.expert_scaling import ExpertScaler
from cluster.fleet import NUM_TRIES, ExpertFleet
from cluster.layout import layout_of
from cluster.resolve import Service
from cluster.spec import AutoscalingSpec
from tests.cluster.fake_experts import fleet_of
from transport.address import Address

ADDRESS = Address("host", "1", "", 0)
ONE_EACH = {0: 1, 1: 1}


def two_of_shard_0(service: Service) -> tuple[ExpertFleet, Any, Any]:
    """A fleet, and both replicas of its shard 0, which serve."""
    fleet = fleet_of(service)
    fleet.grow(layout_of(service), {0: 2, 1: 1})
    first, second = fleet.keepers_of(0)
    second.address, second.served = ADDRESS, True  # pyright: ignore[reportAttributeAccessIssue]
    return fleet, first, second


def in_a_loop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Runs an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: object, **fixtures: object) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


def numbers(fleet: ExpertFleet, shard: int = 0) -> list[int]:
    return [keeper.replica for keeper in fleet.keepers_of(shard)]


@in_a_loop
async def test_the_latest_leaves_first(make: Callable[..., Service]) -> None:
    fleet, _, second = two_of_shard_0(make(per_actor=2))
    assert fleet.beyond(ONE_EACH) == [second]
    assert fleet.beyond({0: 2, 1: 1}) == []
    await fleet.stop()


@in_a_loop
async def test_the_first_replica_stays_though_it_is_just_being_replaced(make: Callable[..., Service]) -> None:
    """Its place is reserved together with other shards': nobody else could have it. Rows go to the other meanwhile."""
    fleet, first, second = two_of_shard_0(make(per_actor=2))
    first.address = None
    assert fleet.beyond(ONE_EACH) == []
    first.address = ADDRESS
    assert fleet.beyond(ONE_EACH) == [second]


@in_a_loop
async def test_of_several_that_are_too_many_one_that_serves_stays(make: Callable[..., Service]) -> None:
    fleet, first, second = two_of_shard_0(make(per_actor=2))
    first.address = None
    (third,) = fleet.grow(fleet.layout, {0: 3, 1: 1})
    assert fleet.beyond(ONE_EACH) == [third], "it does not serve"
    third.address = ADDRESS
    assert fleet.beyond(ONE_EACH) == [third], "it came later"
    assert fleet.beyond({0: 3, 1: 1}) == []
    assert second not in fleet.beyond({0: 0, 1: 0})


@in_a_loop
async def test_a_first_replica_that_is_gone_is_started_beside_one_that_was_found(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller and replica 0 were killed together: only replica 1 was there to be taken over."""
    monkeypatch.setattr("cluster.fleet._running_replicas", lambda *given: {(0, 1), (1, 0)})
    service = make(per_actor=2)
    fleet = fleet_of(service)
    await fleet.adopt()
    assert (numbers(fleet), numbers(fleet, 1)) == ([1], [0])
    fleet.grow(layout_of(service), ONE_EACH)
    assert (numbers(fleet), numbers(fleet, 1)) == ([1, 0], [0])
    await fleet.stop()


def scaler_of(fleet: ExpertFleet) -> tuple[ExpertScaler, list[str]]:
    told: list[str] = []
    return ExpertScaler(fleet, lambda text, failed=False: told.append(text)), told


@in_a_loop
async def test_a_shard_is_not_scaled_down_while_its_first_replica_is_replaced(make: Callable[..., Service]) -> None:
    fleet, first, _ = two_of_shard_0(make(per_actor=2))
    scaler, told = scaler_of(fleet)
    first.address = None
    await scaler.scale(AutoscalingSpec())  # one at most
    assert (numbers(fleet), told) == ([0, 1], [])
    first.address = ADDRESS
    await scaler.scale(AutoscalingSpec())
    assert numbers(fleet) == [0]
    assert len(told) == 1
    assert "1 to 1 replicas allowed, 2 given: 1 now" in told[0]
    await fleet.stop()


@in_a_loop
async def test_what_the_load_asked_for_and_does_not_come_up_is_given_up(
    make: Callable[..., Service],
) -> None:
    service = make(per_actor=2, replicas={"min": 1, "max": 3})
    fleet = fleet_of(service)
    fleet.grow(layout_of(service), {0: 2, 1: 1})
    scaler, told = scaler_of(fleet)
    second: Any = fleet.keepers_of(0)[1]
    second.num_failures = NUM_TRIES - 1
    await scaler.scale(AutoscalingSpec())
    assert (numbers(fleet), told) == ([0, 1], [])
    second.num_failures = NUM_TRIES
    await scaler.scale(AutoscalingSpec())
    assert numbers(fleet) == [0]
    assert told == ["shard 0, replica 1 cannot be had and is given up: no room"]
    await fleet.stop()


@in_a_loop
async def test_one_that_the_file_asks_for_is_never_given_up(make: Callable[..., Service]) -> None:
    service = make(per_actor=2, replicas={"min": 2, "max": 3})
    fleet = fleet_of(service)
    fleet.grow(layout_of(service), {0: 2, 1: 2})
    for shard in (0, 1):
        second: Any = fleet.keepers_of(shard)[1]
        second.num_failures = NUM_TRIES
    scaler, told = scaler_of(fleet)
    await scaler.scale(AutoscalingSpec())
    assert (numbers(fleet), numbers(fleet, 1), told) == ([0, 1], [0, 1], [])
    await fleet.stop()


@in_a_loop
async def test_whoever_waits_for_a_replica_that_fails_hears_why(make: Callable[..., Service]) -> None:
    """After its tries, long before the time is up."""
    service = make(per_actor=2)
    fleet = fleet_of(service)
    added: Any = fleet.grow(layout_of(service), {0: 2, 1: 1})
    second = next(keeper for keeper in added if keeper.replica)
    second.num_failures, second.error = NUM_TRIES - 1, "model.safetensors is missing"
    done: list[int] = []
    waiting = asyncio.create_task(fleet.wait_serving(added, 60.0, done.append))
    await asyncio.sleep(0.2)
    assert not waiting.done(), "one more try"
    second.num_failures = NUM_TRIES
    with pytest.raises(RuntimeError, match="replica 1 does not come up: model.safetensors is missing"):
        await asyncio.wait_for(waiting, 5.0)
    assert set(done) == {2}, "the first ones of both shards"
    await fleet.stop()
