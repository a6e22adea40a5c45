"""Processes of the service are killed while requests run: no request fails, and every output is what it would be."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.faults.inside import end_thread
from tests.faults.load import NUM_TOKENS, a_prompt, load
from tests.faults.parts import (
    RECOVERY_S,
    actors,
    call_in,
    processes,
    wait_gone,
    wait_replaced,
    wait_whole,
    wanted,
)
from tests.integration.ray_service import RayService, complete, complete_streaming, kill, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("shard", [0, 1])
def test_an_expert_is_killed(service: RayService, oracle: Oracle, seed: int, shard: int) -> None:
    """Shard 0 has another replica, which goes on; the only one of shard 1 is waited for."""
    victim = service.replicas(shard)[0]["pid"]
    with load(service, oracle, seed) as streams:
        kill(victim)
        streams.wait_flowing()
    wait_replaced(service, victim)
    assert any(f"pid {victim}) died" in event["text"] for event in service.status()["events"]), service.show()


@pytest.mark.parametrize("part", ["routers", "attention_nodes"])
def test_a_router_and_a_node_are_killed(service: RayService, oracle: Oracle, seed: int, part: str) -> None:
    victim = min(service.pids(part))
    with load(service, oracle, seed) as streams:
        kill(victim)
        streams.wait_flowing()
    wait_replaced(service, victim)


def test_sampled_streams_go_on_at_another_node_as_they_would_have(service: RayService, seed: int) -> None:
    rng = random.Random(seed)
    wishes = [(a_prompt(rng), {"temperature": 0.9, "top_p": 0.95, "seed": rng.randrange(2**31)}) for _ in range(2)]
    client, victim = service.client(), min(service.pids("attention_nodes"))
    undisturbed = [complete(client, prompt, NUM_TOKENS, **options).token_ids for prompt, options in wishes]
    num_tokens = [0] * len(wishes)

    def ask(number: int) -> list[int]:
        prompt, options = wishes[number]

        def note(count: int) -> None:
            num_tokens[number] = count

        return complete_streaming(client, prompt, NUM_TOKENS, note, **options).token_ids

    with ThreadPoolExecutor(len(wishes)) as pool:
        disturbed = [pool.submit(ask, number) for number in range(len(wishes))]  # one at each node
        wait_until(lambda: min(num_tokens) > 20, RECOVERY_S, "both are under way", lambda: num_tokens)
        kill(victim)
        assert max(num_tokens) < NUM_TOKENS, "it was killed too late"
        assert [work.result(RECOVERY_S) for work in disturbed] == undisturbed
    wait_replaced(service, victim)


@pytest.mark.full
@pytest.mark.parametrize(("part", "thread"), [("routers", "manta-router"), ("attention_nodes", "manta-node")])
def test_a_data_plane_thread_dies_and_its_process_lives(
    service: RayService, oracle: Oracle, seed: int, part: str, thread: str
) -> None:
    victim, actor = min(actors(service, part).items(), key=lambda one: one[0])
    with load(service, oracle, seed) as streams:
        assert call_in(actor, end_thread, thread)
        streams.wait_flowing()
    wait_replaced(service, victim)


def test_the_controller_is_killed(service: RayService, oracle: Oracle, seed: int) -> None:
    """Tokens keep flowing; the restarted controller finds everything as it was."""
    before = processes(service)
    victim = service.status()["controller"]["pid"]
    with load(service, oracle, seed) as streams:
        kill(victim)
        streams.wait_flowing()
        wait_until(lambda: _controller(service) != victim, RECOVERY_S, "the controller is restarted")
        wait_whole(service)
        assert processes(service) == before
        check_remembered(service)
        time.sleep(2)  # long enough for its first tables to have cut a connection
        streams.wait_flowing()
    assert processes(service) == before
    wait_gone({victim})


def check_remembered(service: RayService) -> None:
    """The events tell of the restart, of what came of it, and of what had been before."""
    events = [event["text"] for event in service.status()["events"]]
    restart = max(index for index, text in enumerate(events) if text.startswith("the controller was restarted"))
    assert wanted(service).version in events[restart]
    assert any("took over 3 of 3" in text for text in events[restart:]), service.show()
    assert any(text.startswith("node") and text.endswith("serves") for text in events[:restart]), service.show()


def _controller(service: RayService) -> Any:
    return service.status()["controller"]["pid"]
