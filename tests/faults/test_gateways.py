"""A gateway is killed, or hangs: its streams end, all else goes on, and what it had at the nodes is freed."""

import random
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cluster.application import application_state
from tests.faults.inside import num_open
from tests.faults.load import FLOW, a_prompt
from tests.faults.parts import RECOVERY_S, actors, call_in, stopped, wait_replaced, wanted
from tests.integration.ray_fixtures import MAX_CONTEXT
from tests.integration.ray_service import Answer, RayService, alive, complete, complete_streaming, kill, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

NUM_STREAMS = 8
NUM_TOKENS = MAX_CONTEXT - 100
PROXY_HEARS_S = 1.0  # of a gateway that was started just now: Serve's controller tells it in its next turn


@dataclass
class Streams:
    """Streams through two gateways, each with a token or more.

    Args:
        victim: The gateway with fewer of them; it has one or more.
        num_doomed: How many it has.
    """

    prompts: list[list[int]]
    num_tokens: list[int]
    work: list[Future[Answer]]
    victim: int
    num_doomed: int

    def check(self, oracle: Oracle) -> None:
        """Waits for them all: those of the victim were cut off, and the others are whole and right."""
        answers = [ended(one) for one in self.work]
        assert answers.count(None) == self.num_doomed
        for prompt, answer in zip(self.prompts, answers, strict=True):
            if answer is not None:
                assert (len(answer.token_ids), answer.finish_reason) == (NUM_TOKENS, "length")
                oracle.check_greedy(prompt, answer.token_ids)


@contextmanager
def streams_through(service: RayService, seed: int) -> Generator[Streams]:
    spec = wanted(service).spec
    wait_until(lambda: application_state(spec).settled, RECOVERY_S, "Serve has both gateways", service.show)
    time.sleep(PROXY_HEARS_S)
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

    gateways = actors(service, "gateways")
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        work = [pool.submit(ask, number) for number in range(NUM_STREAMS)]
        begun.wait()
        held = {pid: call_in(actor, num_open) for pid, actor in gateways.items()}
        victim = min(held, key=lambda pid: held[pid])
        assert sum(held.values()) == NUM_STREAMS, num_tokens
        assert held[victim] > 0, "Serve gave every stream to one gateway"
        yield Streams(prompts, num_tokens, work, victim, held[victim])


def test_a_gateway_is_killed(service: RayService, oracle: Oracle, seed: int) -> None:
    nodes = actors(service, "attention_nodes").values()
    with streams_through(service, seed) as streams:
        kill(streams.victim)
        num_others = NUM_STREAMS - streams.num_doomed
        wait_until(
            lambda: sum(call_in(node, num_open) for node in nodes) <= num_others,
            RECOVERY_S,
            "the sequences of the dead gateway are freed",
            lambda: streams,
        )
        assert sum(not one.done() for one in streams.work) == num_others, "the others are still under way"
        streams.check(oracle)
        assert complete(service.client(), streams.prompts[0], 4).finish_reason == "length"
    wait_replaced(service, streams.victim)


@pytest.mark.full
def test_a_gateway_hangs(service: RayService, oracle: Oracle, seed: int) -> None:
    """Until that is noticed its streams stand still, and requests that Serve gives to it wait; no other stream does."""
    nodes = actors(service, "attention_nodes").values()
    with streams_through(service, seed) as streams, stopped(streams.victim):
        before = list(streams.num_tokens)

        def num_flowing() -> int:
            return sum(now - then > FLOW for now, then in zip(streams.num_tokens, before, strict=True))

        num_others = NUM_STREAMS - streams.num_doomed
        wait_until(lambda: num_flowing() == num_others, RECOVERY_S, "the others go on", lambda: (streams, before))
        assert alive(streams.victim), "it was noticed before they could show it"
        assert complete(service.client(), streams.prompts[0], 4).finish_reason == "length"
        streams.check(oracle)
        wait_replaced(service, streams.victim)
        wait_until(lambda: not sum(call_in(node, num_open) for node in nodes), RECOVERY_S, "all is freed")


@pytest.mark.full
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
