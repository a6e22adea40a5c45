"""What a service is made of: its processes, whether all are there, and whether nothing else is left."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import ray

from cluster.layout import layout_of
from cluster.names import SERVE_NAMESPACE
from cluster.resolve import Service
from cluster.teardown import running_service
from tests.faults.inside import own_pid
from tests.integration.ray_service import RayService, alive, named_actors, placement_groups, wait_until

RECOVERY_S = 60.0
GONE_S = 60.0
CALL_S = 20.0
MEMBERS = ("routers", "attention_nodes", "gateways")
DEPLOYMENTS = {"routers": "RouterReplica", "attention_nodes": "AttentionNode", "gateways": "Gateway"}


def wanted(service: RayService) -> Service:
    """What the service's controller is to make."""
    return running_service(service.name)


def whole(service: RayService) -> bool:
    """Whether every part has as many replicas as the service file says, and none is left over."""
    status, goal = service.status(), wanted(service)
    shards = layout_of(goal).shards
    serving = [[one["state"] for one in shard["replicas"]] for shard in status["experts"]]
    if serving != [["serving"] * shard.replicas.num for shard in shards]:
        return False
    spec = goal.spec
    members = [spec.router.replicas.num, spec.attention.replicas.num, spec.api.replicas.num]
    if [len(status[part]) for part in MEMBERS] != members:
        return False
    num_experts = sum(shard.replicas.num for shard in shards)
    num_groups = 1 + num_experts - len(shards)
    parts = (len(named_actors(service.name)), len(placement_groups(service.name)), len(serve_replicas(service.name)))
    return parts == (1 + num_experts, num_groups, sum(members))


def left(service: RayService) -> object:
    """Everything of the service, for failures."""
    names = named_actors(service.name), placement_groups(service.name), serve_replicas(service.name)
    return f"{service.show()}\n{names}"


def wait_whole(service: RayService) -> None:
    """Waits until the service is as its file says."""
    wait_until(lambda: whole(service), RECOVERY_S, "the service is whole", lambda: left(service))


def processes(service: RayService) -> dict[str, set[int]]:
    """Every process of the service but the controller."""
    experts = {one["pid"] for shard in service.status()["experts"] for one in shard["replicas"]}
    return {"experts": experts, **{part: service.pids(part) for part in MEMBERS}}


def serving(service: RayService, part: str) -> set[int]:
    """The processes of `experts`, `routers`, `attention_nodes` or `gateways`."""
    return processes(service)[part]


def wait_replaced(service: RayService, victim: int) -> None:
    """Waits until the service is whole without a process, and that process has gone."""
    wait_until(
        lambda: all(victim not in pids for pids in processes(service).values()) and whole(service),
        RECOVERY_S,
        f"{victim} is replaced",
        lambda: left(service),
    )
    wait_gone({victim})


def wait_gone(pids: set[int]) -> None:
    """Waits until none of these processes runs."""
    wait_until(
        lambda: not any(map(alive, pids)), GONE_S, f"{pids} are gone", lambda: [one for one in pids if alive(one)]
    )


@contextmanager
def stopped(*pids: int) -> Generator[None]:
    """Processes that hang, as in a debugger. Whatever is left of them at the end is killed."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def serve_replicas(service: str) -> list[str]:
    """The names of the Ray actors that are a service's gateways, routers and nodes."""
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in found if one["name"].startswith(f"SERVE_REPLICA::{service}#"))


def call_in(actor: Any, function: Callable[..., Any], *args: object) -> Any:
    """Runs a function in an actor's process, which is its first argument; returns what it returns."""
    return ray.get(actor.__ray_call__.remote(function, *args), timeout=CALL_S)


def actors(service: RayService, part: str) -> dict[int, Any]:
    """The Ray actors of one part, by their process ids."""
    if part == "experts":
        found = [ray.get_actor(name, "manta") for name in named_actors(service.name) if "/experts/" in name]
    else:
        prefix = f"SERVE_REPLICA::{service.name}#{DEPLOYMENTS[part]}#"
        names = [name for name in serve_replicas(service.name) if name.startswith(prefix)]
        found = [ray.get_actor(name, SERVE_NAMESPACE) for name in names]
    return {call_in(actor, own_pid): actor for actor in found}
