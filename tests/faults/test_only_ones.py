"""The only one of its kind dies: requests wait for its replacement."""

import pytest

from tests.faults.load import load
from tests.faults.parts import wait_replaced
from tests.integration.ray_service import RayService, kill
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["routers", "attention_nodes"], id="both"),
        pytest.param(["routers"], id="router", marks=pytest.mark.full),
        pytest.param(["attention_nodes"], id="node", marks=pytest.mark.full),
    ],
)
def test_the_only_router_and_node_are_killed(solo: RayService, oracle: Oracle, seed: int, parts: list[str]) -> None:
    victims = {pid for part in parts for pid in solo.pids(part)}
    with load(solo, oracle, seed, num_streams=2) as streams:
        for victim in victims:
            kill(victim)
        streams.wait_flowing()
    for victim in victims:
        wait_replaced(solo, victim)


@pytest.mark.full
def test_everything_but_the_gateway_is_killed_at_once(solo: RayService, oracle: Oracle, seed: int) -> None:
    experts = {one["pid"] for shard in solo.status()["experts"] for one in shard["replicas"]}
    victims = {*experts, *solo.pids("routers"), *solo.pids("attention_nodes"), solo.status()["controller"]["pid"]}
    with load(solo, oracle, seed, num_streams=2) as streams:
        for victim in victims:
            kill(victim)
        streams.wait_flowing()
    for victim in victims:
        wait_replaced(solo, victim)
