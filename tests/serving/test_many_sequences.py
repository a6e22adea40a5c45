"""Requests of more sequences than nodes take at a time: all of them are served, and none is left behind."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from protos.generation_pb2 import Sampling, Submit
from serving.fake import FakeGenerator
from serving.fanin import FanIn
from serving.generator import GenerationError
from serving.openings import MAX_OPEN
from tests.serving.conftest import MODEL, Serve
from tests.serving.test_disconnect import connect, wait_until_freed, wait_until_running

NODE_CAPACITY = 320  # of a node as it comes: 64 run, 256 wait
PROMPTS = [[5 + i, 6, 7] for i in range(256)]


def submits(num: int) -> list[Submit]:
    return [Submit(prompt_ids=[10 + i], sampling=Sampling(max_tokens=3)) for i in range(num)]


def in_time(test: Callable[[], object]) -> None:
    async def run() -> None:
        async with asyncio.timeout(20):
            await test()  # pyright: ignore[reportGeneralTypeIssues]

    asyncio.run(run())


async def read_all(fanin: FanIn, num: int) -> dict[int, list[int]]:
    """The tokens of each submission, once every one has ended."""
    tokens: dict[int, list[int]] = {index: [] for index in range(num)}
    num_open = num
    while num_open:
        for index, output, _ in await fanin.next():
            tokens[index] += output.token_ids
            num_open -= bool(output.finish_reason)
    return tokens


@pytest.mark.parametrize("stream", [False, True])
def test_the_largest_request_that_is_allowed_succeeds(serve: Serve, stream: bool) -> None:
    served = serve(FakeGenerator(capacity=NODE_CAPACITY))  # replays the prompt
    body = {"return_token_ids": True}
    answer: Any = served.client().completions.create(
        model=MODEL, prompt=PROMPTS, n=2, max_tokens=3, stream=stream, extra_body=body
    )
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    tokens: dict[int, list[int]] = {}
    for choice in choices:
        assert choice.model_extra is not None
        tokens.setdefault(choice.index, []).extend(choice.model_extra["token_ids"])
    assert tokens == {index: PROMPTS[index // 2] for index in range(512)}
    assert stream or [choice.index for choice in choices] == list(range(512))
    assert (served.generator.most_running, served.generator.refused) == (MAX_OPEN, 0)


@pytest.mark.parametrize(("num_nodes", "most"), [(0, MAX_OPEN), (1, MAX_OPEN), (3, 3 * MAX_OPEN), (8, 512)])
def test_the_more_nodes_the_more_are_open_at_a_time(num_nodes: int, most: int) -> None:
    async def run() -> None:
        generator, num = FakeGenerator(num_nodes=num_nodes), 512
        fanin = FanIn(generator, submits(num))
        try:
            await read_all(fanin, num)
        finally:
            await fanin.close()
        assert generator.most_running == most

    in_time(run)


@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_what_is_refused_is_submitted_again_as_others_end(capacity: int) -> None:
    async def run() -> None:
        generator, num = FakeGenerator(capacity=capacity), 200
        fanin = FanIn(generator, submits(num))
        try:
            assert await read_all(fanin, num) == {index: [10 + index] * 3 for index in range(num)}
        finally:
            await fanin.close()
        assert (generator.running, generator.most_running) == (0, capacity)
        assert generator.refused < 2 * num, "it does not ask again and again"

    in_time(run)


def test_a_request_of_which_nothing_is_taken_is_refused(serve: Serve) -> None:
    served = serve(FakeGenerator(capacity=0))
    response = httpx.post(f"{served.url}/v1/completions", json={"prompt": "a", "n": 9, "max_tokens": 2})
    assert (response.status_code, "retry-after" in response.headers) == (429, True)


def test_the_last_ones_wait_while_others_fill_the_queues() -> None:
    async def run() -> None:
        generator = FakeGenerator(capacity=1)
        fanin = FanIn(generator, submits(2))
        try:
            first = await fanin.next()
            generator.capacity = 0
            while not first[-1][1].finish_reason:
                first = await fanin.next()
            asyncio.get_running_loop().call_later(0.05, setattr, generator, "capacity", 1)
            rest = [arrived for _ in range(3) for arrived in await fanin.next()]
            assert [(index, list(output.token_ids)) for index, output, _ in rest] == [(1, [11])] * 3
        finally:
            await fanin.close()

    in_time(run)


def test_a_failing_one_ends_the_request_and_no_other_is_begun() -> None:
    async def run() -> None:
        generator = FakeGenerator(capacity=2, failures={2: GenerationError("internal", "x")})
        fanin = FanIn(generator, submits(50))
        try:
            with pytest.raises(GenerationError, match="internal"):
                await read_all(fanin, 50)
        finally:
            await fanin.close()
        assert (generator.running, len(generator.submits)) == (0, 2)

    in_time(run)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_frees_those_that_run_and_begins_no_other(serve: Serve, stream: bool) -> None:
    served = serve(FakeGenerator(capacity=5, delay_s=0.02))
    body = {"model": MODEL, "prompt": PROMPTS, "max_tokens": 400, "stream": stream}
    connection = connect(served, body)
    wait_until_running(served.generator, 5)
    connection.close()
    assert wait_until_freed(served.generator) < 1.0
    assert (len(served.generator.submits), served.generator.cancelled) == (5, 5)


def test_a_stop_string_makes_room_for_the_next(serve: Serve) -> None:
    served = serve(FakeGenerator(capacity=2, delay_s=0.001))
    served.generator.outputs = [served.ids("a b c d e f")]
    answer = served.client().completions.create(model=MODEL, prompt="x", n=8, max_tokens=400, stop="c")
    assert [choice.text for choice in answer.choices] == ["a b "] * 8
    assert served.generator.running == 0


def test_waiting_for_others_of_the_request_is_time_in_a_queue() -> None:
    async def run() -> None:
        generator = FakeGenerator(capacity=1, delay_s=0.02)
        fanin = FanIn(generator, submits(2))
        waits: dict[int, float] = {}
        try:
            while len(waits) < 2:
                for index, output, _ in await fanin.next():
                    waits.setdefault(index, output.queue_s)
        finally:
            await fanin.close()
        assert waits[1] >= 0.06  # three tokens of the first
        assert waits[1] - waits[0] >= 0.05, "the first has not waited"

    in_time(run)
