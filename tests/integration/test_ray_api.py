"""The whole path over Ray and HTTP: the same tokens as transformers and as one process, and the API around it."""

import json
import random
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from manta.local import LocalModel
from protos.generation_pb2 import Sampling, TokenLogprob
from serving.http_guard import DEFAULTS_S, HEAD_TIMEOUT_S
from tests.integration.ray_fixtures import MAX_CONTEXT, VOCABULARY, WINDOW
from tests.integration.ray_service import (
    MODEL,
    Answer,
    RayService,
    complete,
    complete_streaming,
    running_service,
    wait_until,
)
from tests.local_driver import Wish, run
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

LENGTHS = (1, 7, WINDOW, WINDOW + 1, 3 * WINDOW + 5, 5 * WINDOW, 90, 33)
NUM_TOKENS = 24


def prompts_of(lengths: Sequence[int], seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def check(oracle: Oracle, prompt: Sequence[int], answer: Answer, num_tokens: int = NUM_TOKENS) -> None:
    assert (len(answer.token_ids), answer.finish_reason) == (num_tokens, "length")
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    scores = [TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in pairs]
    oracle.check_greedy(prompt, answer.token_ids, scores)


def test_concurrent_requests_equal_transformers_and_one_process(
    alpha: RayService, checkpoint: tuple[Path, Oracle], seed: int
) -> None:
    directory, oracle = checkpoint
    client, prompts = alpha.client(), prompts_of(LENGTHS, seed)
    with ThreadPoolExecutor(2 * len(prompts)) as pool:
        plain = [pool.submit(complete, client, prompt, NUM_TOKENS) for prompt in prompts]
        streamed = [pool.submit(complete_streaming, client, prompt, NUM_TOKENS) for prompt in prompts]
    sampling = Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)
    local = run(LocalModel(directory), [Wish(prompt, sampling) for prompt in prompts])
    for prompt, one, other, outcome in zip(prompts, plain, streamed, local, strict=True):
        check(oracle, prompt, one.result())
        check(oracle, prompt, other.result())
        oracle.check_same(prompt, one.result().token_ids, outcome.tokens)
        if one.result().token_ids == other.result().token_ids:
            assert one.result().text == other.result().text
    assert [len(shard["replicas"]) for shard in alpha.status()["experts"]] == [2, 1]
    wait_until(lambda: all(rows > 0 for rows in rows_of_replicas(alpha)), 5, "every replica has worked", alpha.show)


def rows_of_replicas(service: RayService) -> list[int]:
    return [replica["rows_total"] for shard in service.status()["experts"] for replica in shard["replicas"]]


@pytest.fixture(scope="module")
def sliced(ray_port: int, checkpoint: tuple[Path, Oracle]) -> Iterator[RayService]:
    """A second service on the same Ray: every expert cut in two, little chunks, a short queue."""
    attention = {"prefill_chunk": 5, "max_sequences": 2, "max_queued": 1}
    experts = {"per_actor": 4, "slices": 2}
    with running_service(checkpoint[0], ray_port, "sliced", experts=experts, attention=attention) as service:
        yield service


def test_slices_of_experts_give_the_same(sliced: RayService, checkpoint: tuple[Path, Oracle], seed: int) -> None:
    """Prompts of several windows in chunks smaller than the window; the third request waits for the others."""
    assert sliced.url.endswith("/sliced")
    client, prompts = sliced.client(), prompts_of((3, 40, 3 * WINDOW + 2), seed + 1)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: complete(client, prompt, NUM_TOKENS), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        check(checkpoint[1], prompt, answer)


def test_a_full_queue_is_429(sliced: RayService) -> None:
    client = sliced.client()

    def ask(number: int) -> str:
        try:
            complete(client, [5, 6, number], 100)
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) > 0  # noqa: PT017 - either outcome is fine
            return "429"
        return "200"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, range(3, 11)))
    assert outcomes.count("200") >= 3
    assert outcomes.count("429") >= 1, outcomes
    assert complete(client, [5, 6, 7], 2).finish_reason == "length"


def test_chat_text_and_sampling_with_a_seed(alpha: RayService) -> None:
    client = alpha.client()
    message = [{"role": "user", "content": "Hello there"}]
    options = {"model": MODEL, "messages": message, "max_tokens": 12, "temperature": 0.9, "seed": 7}
    texts = {client.chat.completions.create(**options).choices[0].message.content for _ in range(4)}
    assert len(texts) == 1, "the same seed gives the same text, whichever gateway and node answer"
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) in texts
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_models_health_and_metrics_of_all_parts_together(alpha: RayService) -> None:
    client = alpha.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert alpha.get("/health").status_code == 200
    time.sleep(2.5)  # each gateway hears of the other's figures once a second
    before = metric(alpha, "manta_generation_tokens_total")
    for _ in range(8):  # over both gateways
        complete(client, [5, 6, 7], 3)
    wait_until(
        lambda: metric(alpha, "manta_generation_tokens_total") == before + 24,
        10,
        "the gateways' counters together",
        lambda: alpha.get("/metrics").text,
    )
    assert metric(alpha, "manta_num_attention_nodes") == 2
    assert metric(alpha, "manta_time_to_first_token_seconds_count") >= 8


def metric(service: RayService, name: str) -> float:
    response = service.get("/metrics")
    assert response.status_code == 200, response.text
    return sum(float(line.split()[-1]) for line in response.text.splitlines() if line.startswith(name + "{"))


def test_a_prompt_that_is_too_long(alpha: RayService) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(alpha.client(), [5] * (MAX_CONTEXT + 1), 4)
    assert str(MAX_CONTEXT) in str(caught.value)


def test_unknown_model(alpha: RayService) -> None:
    with pytest.raises(openai.NotFoundError):
        alpha.client().completions.create(model="other", prompt="x")


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_frees_the_sequence(alpha: RayService, stream: bool) -> None:
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 500, "ignore_eos": True, "stream": stream, "n": 2}
    data = json.dumps(body).encode()
    address = urlsplit(alpha.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_until(lambda: alpha.running() > 0, 10, "the sequences run", alpha.show)
    left_s = time.monotonic()
    wait_until(lambda: alpha.running() == 0, 10, "the sequences are freed", alpha.show)
    assert time.monotonic() - left_s < 5  # the figures are up to a second old


@pytest.mark.parametrize("stream", [False, True])
def test_answers_of_many_megabytes(alpha: RayService, stream: bool) -> None:
    """Whole, it is sent in pieces, as the proxy takes them; a stream gathers while nobody reads."""
    body = {"model": MODEL, "prompt": [[5] * 400] * 32, "max_tokens": 1, "logprobs": 20, "echo": True, "stream": stream}
    data = json.dumps(body).encode()
    address = urlsplit(alpha.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(60)
        connection.connect((address.hostname, address.port))
        headers = ["Host: localhost", "Connection: close", f"Content-Length: {len(data)}", "", ""]
        connection.sendall("\r\n".join(["POST /v1/completions HTTP/1.1", *headers]).encode() + data)
        answer = connection.recv(100)
        time.sleep(2)  # the figures are up to a second old
        wait_until(lambda: alpha.running() == 0, 60, "the sequences end", alpha.show)
        answer += b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(answer) > 4 << 20
    assert answer.count(b'"finish_reason":"length"') == 32
    assert not stream or b"data: [DONE]" in answer[-100:]


@pytest.mark.full
def test_a_head_that_never_ends_is_given_up(alpha: RayService) -> None:
    address, limit_s = urlsplit(alpha.url), DEFAULTS_S[HEAD_TIMEOUT_S]
    with socket.create_connection((address.hostname, address.port), timeout=4 * limit_s) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        began_s = time.monotonic()
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert time.monotonic() - began_s > limit_s / 2


def test_status_says_what_runs_where(alpha: RayService) -> None:
    status = alpha.status()
    assert {"experts", "routers", "attention_nodes", "gateways", "controller", "events"} <= status.keys()
    replica = status["experts"][0]["replicas"][0]
    assert {"pid", "host", "state", "rows_per_s", "queue"} <= replica.keys()
    assert status["experts"][1]["experts"] == [2, 3]
    assert [len(status[part]) for part in ("routers", "attention_nodes", "gateways")] == [2, 2, 2]
    assert all({"pid", "host", "cache_used"} <= node.keys() for node in status["attention_nodes"])
    assert json.dumps(status)
