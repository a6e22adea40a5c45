"""Processes of the service are killed while requests run: no request fails, and every output is what it would be."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.integration.conftest import VOCABULARY, WINDOW
from tests.integration.ray_service import (
    Answer,
    RayService,
    alive,
    complete,
    complete_streaming,
    kill,
    wait_until,
)
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

NUM_STREAMS = 4
NUM_TOKENS = 400
KILL_AFTER = 20  # tokens of the first stream
RECOVERY_S = 60.0


def whole(service: RayService) -> bool:
    """Whether every part has as many replicas as the service file says."""
    status = service.status()
    serving = [sum(one["state"] == "serving" for one in shard["replicas"]) for shard in status["experts"]]
    parts = [len(status[part]) for part in ("routers", "attention_nodes", "gateways")]
    return serving == [2, 1] and parts == [2, 2, 2]


@pytest.fixture
def service(alpha: RayService) -> RayService:
    wait_until(lambda: whole(alpha), RECOVERY_S, "the service is whole before the test", alpha.show)
    return alpha


@contextmanager
def streams(service: RayService, seed: int) -> Iterator[list[tuple[list[int], Future[Answer]]]]:
    """Streams under way, each of which has got KILL_AFTER tokens when the block begins."""
    rng = random.Random(seed)
    client, started = service.client(), threading.Barrier(NUM_STREAMS + 1, timeout=RECOVERY_S)

    def note(number: int) -> None:
        if number == KILL_AFTER:
            started.wait()

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        prompts = [[rng.randrange(3, VOCABULARY) for _ in range(3 * WINDOW)] for _ in range(NUM_STREAMS)]
        work = [pool.submit(complete_streaming, client, prompt, NUM_TOKENS, note) for prompt in prompts]
        started.wait()
        yield list(zip(prompts, work, strict=True))


def check_undisturbed(oracle: Oracle, under_way: list[tuple[list[int], Future[Answer]]]) -> None:
    for prompt, work in under_way:
        answer = work.result(timeout=RECOVERY_S)
        assert (len(answer.token_ids), answer.finish_reason) == (NUM_TOKENS, "length")
        oracle.check_greedy(prompt, answer.token_ids)


def replaced(service: RayService, pids: Callable[[], set[int]], victim: int, num: int) -> None:
    wait_until(lambda: len(pids()) == num and victim not in pids(), RECOVERY_S, f"{victim} is replaced", service.show)


@pytest.mark.parametrize("shard", [0, 1])
def test_an_expert_is_killed(service: RayService, checkpoint: tuple[Path, Oracle], seed: int, shard: int) -> None:
    """Shard 0 has another replica, which goes on; the only one of shard 1 is waited for."""
    before = service.replicas(shard)
    victim = before[0]["pid"]
    with streams(service, seed) as under_way:
        kill(victim)
        check_undisturbed(checkpoint[1], under_way)
    replaced(service, lambda: {one["pid"] for one in service.replicas(shard)}, victim, len(before))
    assert any(f"pid {victim}) died" in event["text"] for event in service.status()["events"]), service.show()


@pytest.mark.parametrize("part", ["routers", "attention_nodes"])
def test_a_router_and_a_node_are_killed(
    service: RayService, checkpoint: tuple[Path, Oracle], seed: int, part: str
) -> None:
    victim = min(service.pids(part))
    with streams(service, seed) as under_way:
        kill(victim)
        check_undisturbed(checkpoint[1], under_way)
    replaced(service, lambda: service.pids(part), victim, 2)
    assert complete(service.client(), [5, 6, 7], 4).finish_reason == "length"


@pytest.mark.parametrize(
    ("part", "deployment", "thread"),
    [("routers", "RouterReplica", "manta-router"), ("attention_nodes", "AttentionNode", "manta-node")],
)
def test_a_data_plane_thread_dies_and_its_process_lives(
    service: RayService, checkpoint: tuple[Path, Oracle], seed: int, part: str, deployment: str, thread: str
) -> None:
    actor = a_replica(service, deployment)
    victim = ray.get(actor.__ray_call__.remote(_own_pid), timeout=20)
    assert victim in service.pids(part)
    with streams(service, seed) as under_way:
        assert ray.get(actor.__ray_call__.remote(_end_thread, thread), timeout=20)
        check_undisturbed(checkpoint[1], under_way)
    replaced(service, lambda: service.pids(part), victim, 2)
    wait_until(lambda: not alive(victim), RECOVERY_S, "Serve ends the broken replica", service.show)


def test_the_controller_is_killed(service: RayService, checkpoint: tuple[Path, Oracle], seed: int) -> None:
    """Tokens keep flowing; the restarted controller finds everything as it was."""
    before = processes(service)
    victim = service.status()["controller"]["pid"]
    with streams(service, seed) as under_way:
        kill(victim)
        check_undisturbed(checkpoint[1], under_way)
        assert complete(service.client(), [5, 6, 7], 4).finish_reason == "length"
    wait_until(lambda: service.status()["controller"]["pid"] != victim, RECOVERY_S, "the controller is restarted")
    wait_until(lambda: whole(service), RECOVERY_S, "the controller finds every part", service.show)
    assert processes(service) == before
    assert any("took over 3 of 3" in event["text"] for event in service.status()["events"]), service.show()
    time.sleep(2)  # long enough for its first tables to have cut a connection
    assert processes(service) == before


def processes(service: RayService) -> dict[str, set[int]]:
    """Every process of the service but the controller."""
    experts = {one["pid"] for shard in service.status()["experts"] for one in shard["replicas"]}
    return {"experts": experts, **{part: service.pids(part) for part in ("routers", "attention_nodes", "gateways")}}


def a_replica(service: RayService, deployment: str) -> Any:
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    prefix = f"SERVE_REPLICA::{service.name}#{deployment}#"
    name = min(one["name"] for one in found if one["name"].startswith(prefix))
    return ray.get_actor(name, "serve")


def _own_pid(replica: object) -> int:
    import os

    return os.getpid()


def _end_thread(replica: object, name: str) -> bool:
    """Runs in the replica: raises SystemExit in the thread of that name, as soon as it runs Python again."""
    import ctypes
    import threading

    thread = next(one for one in threading.enumerate() if one.name == name)
    assert thread.ident is not None
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1
