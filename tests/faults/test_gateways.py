"""A gateway is killed: its streams end, everything else goes on, and what it had at the nodes is freed."""

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults.inside import num_open
from tests.faults.load import a_prompt
from tests.faults.parts import RECOVERY_S, actors, call_in, wait_replaced
from tests.integration.ray_fixtures import MAX_CONTEXT
from tests.integration.ray_service import Answer, RayService, complete, complete_streaming, kill, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

NUM_STREAMS = 8
NUM_TOKENS = MAX_CONTEXT - 100


def test_a_gateway_is_killed(service: RayService, oracle: Oracle, seed: int) -> None:
    rng = random.Random(seed)
    client = service.client()
    prompts = [a_prompt(rng) for _ in range(NUM_STREAMS)]
    num_tokens, begun = [0] * NUM_STREAMS, threading.Barrier(NUM_STREAMS + 1, timeout=RECOVERY_S)

    def ask(number: int) -> Answer:
        def note(count: int) -> None:
            if num_tokens[number] == 0:
                begun.wait()
            num_tokens[number] = count

        return complete_streaming(client, prompts[number], NUM_TOKENS, note)

    gateways, nodes = actors(service, "gateways"), actors(service, "attention_nodes").values()
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        work = [pool.submit(ask, number) for number in range(NUM_STREAMS)]
        begun.wait()
        held = {pid: call_in(actor, num_open) for pid, actor in gateways.items()}
        victim = min(held, key=lambda pid: held[pid])
        assert sum(held.values()) == NUM_STREAMS, num_tokens
        assert held[victim] > 0, "Serve gave every stream to one gateway"
        kill(victim)
        wait_until(
            lambda: sum(call_in(node, num_open) for node in nodes) <= NUM_STREAMS - held[victim],
            RECOVERY_S,
            "the sequences of the dead gateway are freed",
            lambda: (num_tokens, held),
        )
        alive = [count for count, one in zip(num_tokens, work, strict=True) if not one.done()]
        assert len(alive) == NUM_STREAMS - held[victim], "the others are still under way"
        answers = [ended(one) for one in work]
        assert complete(service.client(), prompts[0], 4).finish_reason == "length"
    assert answers.count(None) == held[victim]
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer is not None:
            assert (len(answer.token_ids), answer.finish_reason) == (NUM_TOKENS, "length")
            oracle.check_greedy(prompt, answer.token_ids)
    wait_replaced(service, victim)


def test_nothing_that_was_counted_is_lost(service: RayService, seed: int) -> None:
    """Each counter that /metrics shows is at least what it was, whoever dies; 503 while it cannot be known."""
    rng = random.Random(seed)
    for _ in range(4):
        complete(service.client(), a_prompt(rng), 4)
    shown = counters(service)
    victims = [
        min(service.pids("gateways")),
        min(service.pids("attention_nodes")),
        service.status()["controller"]["pid"],
    ]
    for victim in victims:
        kill(victim)
        wait_until(lambda: len(service.pids("gateways")) == 2, RECOVERY_S, "two gateways", service.show)
        wait_replaced(service, victim)
        complete(service.client(), a_prompt(rng), 4)
        for _ in range(20):
            before, shown = shown, counters(service)
            assert {name: shown.get(name, 0) for name in before if shown.get(name, 0) < before[name]} == {}, victim


def counters(service: RayService) -> dict[str, float]:
    """What /metrics shows, but the gauges, once it can be known; by series."""
    wait_until(lambda: service.get("/metrics").status_code == 200, RECOVERY_S, "/metrics", service.show)
    answer = service.get("/metrics")
    assert answer.status_code == 200
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {
        series: round(float(value), 6) for series, _, value in lines if "_total{" in series or "_seconds_" in series
    }


def ended(work: Future[Answer]) -> Answer | None:
    """What a stream got; None: it was cut off."""
    try:
        return work.result(RECOVERY_S)
    except Exception:
        return None
