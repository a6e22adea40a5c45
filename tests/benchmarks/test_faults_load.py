"""Clients that work through their lists against a real HTTP server."""

import asyncio
import math

import pytest

from benchmarks.client import Server
from benchmarks.faults.load import Answer, Phase, SteadyLoad
from tests.benchmarks.fake_server import FakeServer

OUTPUT_LEN = 6
PROMPTS = (([10], [20]), ([30], [40]), ([50], [60]))


def run(fake: FakeServer, *, seconds: float | None = None, logprobs: bool = False) -> Phase:
    """One phase: every list once, or `seconds` of it. Checks that each request was reported as it ended."""

    async def phase(load: SteadyLoad) -> Phase:
        over = None if seconds is None else asyncio.Event()
        if over is not None:
            asyncio.get_running_loop().call_later(seconds or 0.0, over.set)
        return await load.run(ended.append, until=over, logprobs=logprobs)

    ended: list[Answer] = []
    with fake as url:
        found = asyncio.run(phase(SteadyLoad(Server("fake", url, "m", 10.0), PROMPTS, OUTPUT_LEN)))
    assert found.answers == tuple(ended)
    return found


def test_every_list_once() -> None:
    fake = FakeServer()
    phase = run(fake, logprobs=True)
    assert sorted(answer.key for answer in phase.answers) == [(c, r) for c in range(3) for r in range(2)]
    for answer in phase.answers:
        client, index = answer.key
        first = PROMPTS[client][index][0]
        assert answer.token_ids == tuple(range(first, first + OUTPUT_LEN))
        assert answer.margins == pytest.approx((0.5,) * OUTPUT_LEN)
        assert phase.began_s <= answer.record.chunks_s[-1] <= answer.ended_s <= phase.ended_s
    assert all(body["temperature"] == 0 and body["ignore_eos"] and body["stream"] for body in fake.bodies)
    assert phase.run.num_output_tokens == 6 * OUTPUT_LEN
    assert fake.most_at_once == 3


def test_over_and_over_until_told_and_then_to_the_end() -> None:
    phase = run(FakeServer(), seconds=0.3)
    assert phase.ended_s - phase.began_s >= 0.3
    assert len(phase.answers) > 6
    assert all(len(answer.token_ids) == OUTPUT_LEN and not answer.margins for answer in phase.answers)
    lists = {client: [one.key[1] for one in phase.answers if one.key[0] == client] for client in range(3)}
    for indices in lists.values():
        assert indices == [place % 2 for place in range(len(indices))]


def test_failures_are_kept_and_the_client_goes_on_after_a_pause() -> None:
    phase = run(FakeServer(fault="refuse"), seconds=1.2)
    failed = [answer.record.error for answer in phase.answers if answer.record.error is not None]
    assert failed
    assert set(failed) == {"HTTP 429: the queue is full"}
    assert len(failed) <= 3 * (math.ceil(1.2 / 0.5) + 1)
    assert any(answer.record.error is None for answer in phase.answers)
