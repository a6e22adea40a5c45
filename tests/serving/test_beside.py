"""Large work of several requests at once: a few threads beside the event loop, and turns of the loop for bodies."""

import asyncio
import itertools
import json
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from serving import beside as beside_module
from serving import bodies
from serving.app import build_app
from serving.beside import MAX_THREADS, THREAD_FROM_TOKENS, TURN_FROM_BYTES, OneByOne, beside
from serving.fake import FakeGenerator
from serving.settings import GatewaySettings
from serving.tokenizer import TextCodec
from tests.fuzz.asgi import InProcess

TOGETHER = 8


def test_few_threads_work_at_once() -> None:
    lock, both_in = threading.Lock(), threading.Barrier(MAX_THREADS)
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both_in.wait(20)  # so that none of them ends before all that may run do
        with lock:
            running -= 1

    async def all_of_them() -> None:
        await asyncio.gather(*(beside(work, THREAD_FROM_TOKENS) for _ in range(TOGETHER)))

    asyncio.run(all_of_them())
    assert most == MAX_THREADS


@pytest.mark.parametrize("num_bytes", [TURN_FROM_BYTES // 2, TURN_FROM_BYTES])
def test_large_bodies_that_arrive_together_are_parsed_in_turns(
    monkeypatch: pytest.MonkeyPatch, codec: TextCodec, num_bytes: int
) -> None:
    parsed_in, turn, parse = Counter[int](), 0, bodies.parse_body

    def parse_and_count(*arguments):
        parsed_in[turn] += 1
        return parse(*arguments)

    def count_turns() -> None:
        nonlocal turn
        turn += 1
        service._loop.call_soon(count_turns)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(bodies, "parse_body", parse_and_count)
    service = InProcess(build_app(GatewaySettings("m", 512, vocab_size=400), codec, FakeGenerator()))
    count_turns()
    body = json.dumps({"tokens": ["x"], "an_unknown_field": "a" * num_bytes}).encode()
    answers = service.post_all([("/detokenize", body, None)] * TOGETHER)
    assert [answer.status for answer in answers if answer is not None] == [400] * TOGETHER
    assert sum(parsed_in.values()) == TOGETHER
    assert (max(parsed_in.values()) == 1) == (num_bytes >= TURN_FROM_BYTES)


def test_between_two_bodies_the_loop_is_left_to_others_for_as_long_as_one_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, pauses, order = itertools.count(step=3.0), list[float](), list[str]()
    monkeypatch.setattr(beside_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    async def others(loop: asyncio.AbstractEventLoop, delay_s: float, callback) -> None:
        pauses.append(delay_s)
        order.append("others")
        loop.call_soon(callback)

    async def all_of_them() -> None:
        loop, one_by_one = asyncio.get_running_loop(), OneByOne()
        monkeypatch.setattr(
            loop, "call_later", lambda delay_s, callback: loop.create_task(others(loop, delay_s, callback))
        )
        await asyncio.gather(*(one_by_one.take(lambda: order.append("body"), TURN_FROM_BYTES) for _ in range(3)))

    asyncio.run(all_of_them())
    assert order[:5] == ["body", "others", "body", "others", "body"]
    assert set(pauses) == {3.0}


def test_a_body_that_is_wrong_gives_its_turn_on() -> None:
    one_by_one = OneByOne()

    def fail() -> None:
        raise ValueError("x")

    async def both() -> int:
        with pytest.raises(ValueError, match="x"):
            await one_by_one.take(fail, TURN_FROM_BYTES)
        return await asyncio.wait_for(one_by_one.take(lambda: 5, TURN_FROM_BYTES), 10)

    assert asyncio.run(both()) == 5
