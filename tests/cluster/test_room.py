"""What follows from the CPUs there are, and where they are counted."""

from collections.abc import Callable
from typing import Any

import pytest
import ray

from cluster import hosts as hosts_module
from cluster.hosts import present_room
from cluster.layout import layout_of
from cluster.resolve import Service, resolve
from cluster.room import FOR_OTHERS, Room


@pytest.mark.parametrize(
    ("hosts", "own", "share"),
    [
        ((8.0,), False, 1.0),
        ((8.0,), True, 0.2),
        ((64.0,), True, 1.0),
        ((2.0,), True, 0.05),
        ((2.0,), False, 0.05),
        ((2.0, 2.0), False, 1.0),
        ((0.0, 64.0, 64.0), False, 1.0),
        ((0.0,), False, 1.0),
        ((), False, 1.0),
    ],
)
def test_shares(hosts: tuple[float, ...], own: bool, share: float) -> None:
    assert Room(hosts, own).share == share


@pytest.mark.parametrize("num_cpus", range(1, 65))
def test_a_service_of_one_replica_fits_and_a_node_can_be_exchanged(num_cpus: int) -> None:
    room = Room((float(num_cpus),), own=False)
    small = 2 * 2 * min(0.1, room.share)  # a gateway and a router, and their replacements
    assert room.share * (room.for_experts("spread") + 2) + small <= num_cpus


@pytest.mark.parametrize(
    ("hosts", "placement", "num_actors"),
    [
        ((2.0,), "spread", 2),
        ((4.0,), "spread", 1),
        ((0.0, 64.0, 64.0), "spread", 128 - FOR_OTHERS),
        ((4.0, 4.0), "strict_pack", 3),
        ((4.0, 4.0, 0.0), "strict_spread", 2),
        ((0.0,), "pack", 1),
        ((), "strict_pack", 1),
    ],
)
def test_how_many_expert_actors_a_cluster_takes(hosts: tuple[float, ...], placement: str, num_actors: int) -> None:
    assert Room(hosts, own=False).for_experts(placement) == num_actors


@pytest.mark.parametrize(
    ("experts", "num_shards"),
    [
        ({}, 5),
        ({"replicas": 2}, 2),
        ({"replicas": {"min": 1, "max": 9}}, 5),
        ({"replicas": 2, "num_cpus": 0.5}, 5),
        ({"replicas": 9}, 1),
        ({"num_cpus": 2}, 2),
        ({"num_cpus": 0}, 5),
    ],
)
def test_all_replicas_that_a_service_starts_with_have_room(
    make: Callable[..., Service], experts: dict[str, Any], num_shards: int
) -> None:
    service = make(Room((8.0,), own=False), **experts)
    assert len(layout_of(service).shards) == num_shards
    assert resolve(service.spec, service.room) == service


@pytest.mark.parametrize(
    ("hosts", "placement", "replicas", "num_cpus", "num_shards"),
    [
        ((8.0,) * 4, "strict_spread", 2, 1.0, 2),
        ((8.0,) * 4, "strict_spread", 1, 9.0, 1),
        ((12.0, 12.0), "strict_pack", 2, 1.0, 5),
        ((12.0, 12.0), "strict_pack", 1, 2.0, 5),
        ((12.0, 12.0), "pack", 2, 1.0, 10),
    ],
)
def test_strict_placements_have_room_for_all_replicas(
    hosts: tuple[float, ...], placement: str, replicas: int, num_cpus: float, num_shards: int
) -> None:
    """Further replicas keep to the placement too: each on a host of its own, or all on one."""
    assert Room(hosts, False, replicas, num_cpus).for_experts(placement) == num_shards


def test_replicas_that_are_added_later_leave_the_shards_as_they_are(make: Callable[..., Service]) -> None:
    service = make(Room((4.0, 4.0), own=False))
    changed = make(service.room, replicas=2)
    assert layout_of(changed).version == layout_of(service).version


def test_a_joined_cluster_is_asked_and_not_the_host_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def host(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    monkeypatch.setattr(hosts_module, "available_cores", lambda: 2)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert present_room() == Room((2.0,), own=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [host(), host(CPU=64.0), host(alive=False, CPU=64.0), host(CPU=96.0)])
    for own in (False, True):
        monkeypatch.setattr(hosts_module, "_internal_kv_exists", lambda *given, found=own, **more: found)
        assert present_room() == Room((96.0, 64.0, 0.0), own)
