"""Ray Serve's proxy, through which every request comes, is killed: its streams end, and Serve starts another one."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import ray

from cluster.names import SERVE_NAMESPACE
from tests.faults.inside import num_open, own_pid
from tests.faults.load import a_prompt
from tests.faults.parts import RECOVERY_S, actors, call_in, processes
from tests.integration.ray_fixtures import MAX_CONTEXT
from tests.integration.ray_service import RayService, complete, complete_streaming, kill, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

PROXY = "SERVE_PROXY_ACTOR"
NUM_STREAMS = 4
NUM_TOKENS = MAX_CONTEXT - 100
BACK_S = 20.0  # three of Serve's checks, a second apart, and the start of a process on a busy machine


def proxy_pid() -> int:
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    (name,) = (one["name"] for one in found if one["namespace"] == SERVE_NAMESPACE and PROXY in one["name"])
    return call_in(ray.get_actor(name, SERVE_NAMESPACE), own_pid)


@pytest.mark.full
def test_serves_proxy_is_killed(service: RayService, oracle: Oracle, seed: int) -> None:
    rng = random.Random(seed)
    prompts = [a_prompt(rng) for _ in range(NUM_STREAMS)]
    client, num_tokens = service.client(), [0] * NUM_STREAMS
    before, nodes = processes(service), actors(service, "attention_nodes").values()

    def ask(number: int) -> None:
        def note(count: int) -> None:
            num_tokens[number] = count

        complete_streaming(client, prompts[number], NUM_TOKENS, note)

    def num_held() -> int:
        return sum(call_in(node, num_open) for node in nodes)

    def answers() -> bool:
        try:
            return complete(service.client(), prompts[0], 4).finish_reason == "length"
        except openai.APIConnectionError:
            return False

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        work = [pool.submit(ask, number) for number in range(NUM_STREAMS)]
        wait_until(lambda: min(num_tokens) > 0, RECOVERY_S, "every stream has begun", lambda: num_tokens)
        kill(proxy_pid())
        killed_s = time.monotonic()
        failures = [one.exception(RECOVERY_S) for one in work]
        assert all(failures), "their connections ended"
        wait_until(lambda: num_held() == 0, RECOVERY_S, "the nodes have freed them", num_held)
        wait_until(answers, BACK_S - (time.monotonic() - killed_s), "new requests are answered")
    print(f"requests were answered again {time.monotonic() - killed_s:.1f} s after Serve's proxy was killed")
    assert processes(service) == before, "nothing else was replaced"
    answer = complete(service.client(), prompts[0], NUM_TOKENS)
    oracle.check_greedy(prompts[0], answer.token_ids)
