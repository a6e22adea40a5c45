"""What Manta has no room for is told to Ray's autoscaler: it is a pending placement group, which asks for hosts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from cluster.layout import layout_of
from cluster.names import group_name
from cluster.placement import release, reserve_further
from cluster.resolve import resolve
from cluster.room import Room
from tests.integration.ray_service import placement_groups, spec_of, wait_until
from tests.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.full]

TOO_MANY = 50.0
TIMEOUT_S = 20.0


def demanded() -> list[dict[str, float]]:
    """The bundles that Ray's control plane tells its autoscaler to find hosts for."""
    status: Any = get_cluster_status(ray.get_runtime_context().gcs_address)
    groups = status.resource_demands.placement_group_demand
    return [one.bundle for group in groups for one in group.bundles_by_count]


def test_a_second_replica_without_room_asks_for_a_host(ray_port: int, checkpoint: tuple[Path, Oracle]) -> None:
    experts = {"num_cpus": TOO_MANY, "replicas": {"min": 1, "max": 2}}
    service = resolve(spec_of(checkpoint[0], ray_port, "demanding", experts=experts), Room((2.0,), own=True))
    layout = layout_of(service)

    async def reserve() -> None:
        reserving = asyncio.create_task(reserve_further(service, layout, layout.shards[0], 1, asyncio.Lock()))
        await asyncio.to_thread(wait_until, asked, TIMEOUT_S, "it is among the demands", demanded)
        assert not reserving.done()
        reserving.cancel()

    def asked() -> bool:
        return any(bundle.get("CPU") == TOO_MANY for bundle in demanded())

    assert not asked()
    try:
        asyncio.run(reserve())
    finally:
        release(group_name(service.name, layout.version, 0, 1), None)
    assert not placement_groups(service.name)
    wait_until(lambda: not asked(), TIMEOUT_S, "it asks no more", demanded)
