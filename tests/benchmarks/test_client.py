"""The streaming client against a real HTTP server that works, refuses, breaks off or falls silent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.client import Server, ServerError, connect, split_address
from benchmarks.load import RunRecord
from benchmarks.workload import Workload
from tests.benchmarks.fake_server import TOKEN_S, FakeServer, event, token

OUTPUT_LEN = 8


def run(fake: FakeServer, *, num_prompts: int = 6, concurrency: int = 3, timeout_s: float = 10.0) -> RunRecord:
    """Measure the fake server once, and check that every request was reported as it ended."""
    ended: list[None] = []
    with fake as url:
        workload = Workload(tuple([index] for index in range(num_prompts)), OUTPUT_LEN, concurrency)
        record = Server("fake", url, "m", timeout_s).run(workload, lambda: ended.append(None))
    assert len(ended) == num_prompts
    return record


def errors(record: RunRecord) -> list[str]:
    return [request.error for request in record.requests if request.error is not None]


def test_a_clean_run_is_timed_and_counted() -> None:
    fake = FakeServer()
    record = run(fake)
    assert errors(record) == []
    assert record.num_output_tokens == 6 * OUTPUT_LEN
    assert fake.most_at_once == 3
    assert record.duration_s >= 2 * OUTPUT_LEN * TOKEN_S
    for request in record.requests:
        assert request.ttft_s is not None
        assert request.e2e_s is not None
        assert request.ttft_s >= TOKEN_S
        assert request.e2e_s >= OUTPUT_LEN * TOKEN_S
        assert request.tpot_s == pytest.approx((request.e2e_s - request.ttft_s) / (OUTPUT_LEN - 1))


def test_each_prompt_is_sent_once_and_asks_for_exactly_this() -> None:
    fake = FakeServer()
    run(fake)
    assert sorted(body["prompt"] for body in fake.bodies) == [[index] for index in range(6)]
    body = fake.bodies[0]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (OUTPUT_LEN, True, 0.0)
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}


def test_without_usage_chunks_are_counted() -> None:
    record = run(FakeServer(with_usage=False))
    assert [request.num_output_tokens for request in record.requests] == [OUTPUT_LEN] * 6


class TwoTokensAChunk(FakeServer):
    """Ends with a chunk of its own, as OpenAI and Manta do."""

    async def _stream(self, body: dict[str, Any], fault: str) -> AsyncIterator[bytes]:
        for index in range(0, OUTPUT_LEN, 2):
            await asyncio.sleep(TOKEN_S)
            yield token(f" {index} {index + 1}") + (token("", "length") if index == OUTPUT_LEN - 2 else b"")
        yield event({"choices": [], "usage": {"completion_tokens": OUTPUT_LEN, "prompt_tokens": 1}})
        yield b"data: [DONE]\n\n"


def test_a_chunk_that_only_ends_a_stream_is_no_token_s_time() -> None:
    record = run(TwoTokensAChunk())
    assert errors(record) == []
    assert record.num_output_tokens == 6 * OUTPUT_LEN
    assert [len(request.chunks_s) for request in record.requests] == [OUTPUT_LEN // 2] * 6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", "HTTP 429: the queue is full"),
        ("drop", "ClientPayloadError"),
        ("error", "error in the stream: expert 3 is gone"),
        ("early", "the stream ended before [DONE]"),
    ],
)
def test_failed_requests_are_counted_and_the_others_measured(fault: str, message: str) -> None:
    record = run(FakeServer(fault=fault))
    assert len(errors(record)) == 3
    assert all(message in error for error in errors(record)), errors(record)
    assert record.num_output_tokens == 3 * OUTPUT_LEN


def test_a_stream_cut_midway_keeps_the_chunks_it_got() -> None:
    record = run(FakeServer(fault="drop"))
    assert {len(request.chunks_s) for request in record.requests if request.error} == {OUTPUT_LEN // 2}


def test_a_silent_server_times_out() -> None:
    record = run(FakeServer(fault="silent"), num_prompts=2, concurrency=2, timeout_s=0.3)
    assert len(errors(record)) == 1
    assert "Timeout" in errors(record)[0]


def test_a_server_that_is_gone_fails_every_request() -> None:
    with FakeServer() as url:
        pass
    record = Server("gone", url, "m").run(Workload(([1], [2]), 4, 2), lambda: None)
    assert len(errors(record)) == 2


def test_connect_takes_the_first_model_or_the_one_asked_for() -> None:
    with FakeServer(models=("a", "b")) as url:
        assert connect(url, None, 1.0).model == "a"
        chosen = connect(f"mine={url}/v1/", "b", 1.0)
        assert (chosen.model, chosen.name, chosen.base_url) == ("b", "mine", url)
        with pytest.raises(ServerError, match="does not serve 'c'; it serves a, b"):
            connect(url, "c", 1.0)


def test_connect_to_a_server_without_a_model_list() -> None:
    with FakeServer(models=None) as url:
        assert connect(url, "m", 1.0).model == "m"
        with pytest.raises(ServerError, match="--model"):
            connect(url, None, 1.0)


def test_connect_to_nothing() -> None:
    with FakeServer() as url:
        pass
    with pytest.raises(ServerError, match="cannot reach"):
        connect(url, None, 1.0)


@pytest.mark.parametrize("address", ["localhost:8000", "a=b", "ftp://x", "http://", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ServerError, match="no server address"):
        split_address(address)


def test_an_equals_sign_inside_a_url_is_no_name() -> None:
    assert split_address("http://h:1/x?a=b") == ("h:1", "http://h:1/x?a=b")
