"""Removes one of three fake hosts, with everything on it, under streams. A program: it has a Ray cluster of its own.

python -m tests.faults.host_loss CHECKPOINT SEED
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from transformers import MixtralForCausalLM

from cluster.names import NAMESPACE
from cluster.ray_session import OBJECT_STORE_BYTES, RAY_ENVIRONMENT, WORKER_ENVIRONMENT
from cluster.ray_token import demand_token
from tests.faults.load import load
from tests.faults.parts import MEMBERS, RECOVERY_S, left, wait_gone, wait_whole
from tests.integration.ray_service import RayService, free_port, kill, running_service, wait_until
from tests.oracle import Oracle

TWO = {"replicas": 2}
MOST_MOVES = 30
# How soon Ray notices that a host does not answer; by default it takes it half a minute.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def main(directory: Path, seed: int) -> None:
    """Fails if a stream does, or if what was on the host is not replaced elsewhere."""
    os.environ.update({**RAY_ENVIRONMENT, **WORKER_ENVIRONMENT})
    demand_token()
    oracle = Oracle(MixtralForCausalLM.from_pretrained(directory, experts_implementation="eager").eval())
    with tempfile.TemporaryDirectory(prefix="mh") as folder:
        cluster, hosts = start_hosts(folder)
        try:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            with running_service(directory, free_port(), "alpha", router=TWO, attention=TWO, experts=TWO) as service:
                lose_a_host(service, cluster, hosts, oracle, seed)
        finally:
            ray.shutdown()
            cluster.shutdown()


def start_hosts(folder: str) -> tuple[Cluster, dict[str, Any]]:
    """Starts a head without room for any part, and two hosts, by their Ray ids."""
    size: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES}
    head = {**size, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    hosts = [cluster.add_node(num_cpus=2, **size) for _ in range(2)]
    return cluster, {host.node_id: host for host in hosts}


def lose_a_host(service: RayService, cluster: Cluster, hosts: dict[str, Any], oracle: Oracle, seed: int) -> None:
    """Removes the host without the gateway: whose streams would end with it. The controller is on it."""
    wait_whole(service)
    (gateway,) = service.status()["gateways"]
    (victim,) = hosts.keys() - {gateway["host"]}
    move_controller(service, victim)
    wait_whole(service)
    lost = placed(service)[victim]
    assert {kind for kind, _ in lost} == {"experts", "routers", "attention_nodes"}, placed(service)
    with load(service, oracle, seed) as streams:
        assert service.status()["controller"]["host"] == victim
        cluster.remove_node(hosts[victim], allow_graceful=False)
        streams.wait_flowing()
        wait_until(lambda: victim not in placed(service), RECOVERY_S, "nothing is there", lambda: left(service))
        wait_whole(service)
        streams.wait_flowing()
    wait_gone({pid for _, pid in lost})
    assert service.status()["controller"]["host"] != victim
    print(f"{len(lost)} processes of a host were replaced elsewhere, under {len(streams.answers)} streams")


def move_controller(service: RayService, host: str) -> None:
    """Kills it until Ray, which starts it again wherever it likes, has it there."""
    for _ in range(MOST_MOVES):
        at = service.status()["controller"]
        if at["host"] == host:
            return
        kill(at["pid"])
        wait_until(lambda pid=at["pid"]: service.status()["controller"]["pid"] != pid, RECOVERY_S, "it is back")
    raise AssertionError(f"not once in {MOST_MOVES} times")


def placed(service: RayService) -> dict[str, list[tuple[str, int]]]:
    """What runs where: kinds and process ids by host."""
    status = service.status()
    members = [(part, one) for part in MEMBERS for one in status[part]]
    experts = [("experts", one) for shard in status["experts"] for one in shard["replicas"]]
    found: dict[str, list[tuple[str, int]]] = {}
    for kind, one in [*members, *experts]:
        found.setdefault(one["host"], []).append((kind, one["pid"]))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
