"""Processes hang: they are stopped, with their connections open. Streams go on, and what hangs is replaced."""

import pytest

from tests.faults.load import load
from tests.faults.parts import RECOVERY_S, processes, stopped, wait_gone, wait_replaced
from tests.integration.ray_service import RayService, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster


def a_process(service: RayService, part: str) -> int:
    """Shard 0's first replica, where it is to be an expert: there is another one."""
    return service.replicas(0)[0]["pid"] if part == "experts" else min(service.pids(part))


def test_an_expert_a_router_and_a_node_hang_together(service: RayService, oracle: Oracle, seed: int) -> None:
    victims = {a_process(service, part) for part in ("experts", "routers", "attention_nodes")}
    with load(service, oracle, seed) as streams, stopped(*victims):
        streams.wait_flowing()
        for victim in victims:
            wait_replaced(service, victim)
        streams.wait_flowing()


@pytest.mark.full
@pytest.mark.parametrize("part", ["experts", "routers", "attention_nodes"])
def test_one_hangs(service: RayService, oracle: Oracle, seed: int, part: str) -> None:
    victim = a_process(service, part)
    with load(service, oracle, seed) as streams, stopped(victim):
        streams.wait_flowing()
        wait_replaced(service, victim)
        streams.wait_flowing()


@pytest.mark.full
def test_the_only_replica_of_a_shard_hangs(service: RayService, oracle: Oracle, seed: int) -> None:
    victim = service.replicas(1)[0]["pid"]
    with load(service, oracle, seed) as streams, stopped(victim):
        streams.wait_flowing()
        wait_replaced(service, victim)


@pytest.mark.full
def test_the_controller_hangs(service: RayService, oracle: Oracle, seed: int) -> None:
    before, victim = processes(service), service.status()["controller"]["pid"]
    with load(service, oracle, seed) as streams, stopped(victim):
        streams.wait_flowing()
        wait_gone({victim})  # until then nobody answers a question about the service
        wait_until(lambda: processes(service) == before, RECOVERY_S, "all are found again", service.show)
        streams.wait_flowing()
    assert service.status()["controller"]["pid"] != victim
