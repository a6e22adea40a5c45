"""Processes hang, or one thread of theirs does, with their connections open. Streams go on; what hangs is replaced."""

import pytest

from tests.faults.inside import hang_thread
from tests.faults.load import load
from tests.faults.parts import (
    RECOVERY_S,
    actors,
    call_in,
    processes,
    stopped,
    wait_gone,
    wait_replaced,
)
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


@pytest.mark.parametrize(
    ("part", "module", "name"),
    [
        ("experts", "experts.server", "ExpertServer"),
        pytest.param("routers", "router.server", "RouterServer", marks=pytest.mark.full),
        pytest.param("attention_nodes", "attention.node", "NodeServer", marks=pytest.mark.full),
    ],
)
def test_a_data_plane_thread_hangs_alone(
    service: RayService, oracle: Oracle, seed: int, part: str, module: str, name: str
) -> None:
    """Every other thread of its process goes on, those that answer the controller too."""
    victim = a_process(service, part)
    actor = actors(service, part)[victim]
    with load(service, oracle, seed) as streams:
        call_in(actor, hang_thread, module, name)
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
