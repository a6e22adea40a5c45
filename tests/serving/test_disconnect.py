"""A client that goes away frees its sequences at once."""

import json
import socket
import time

import httpx
import pytest

from serving.fake import FakeGenerator
from tests.serving.conftest import MODEL, Serve, Served

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 400, "n": 3}


def wait_until_freed(generator: FakeGenerator, limit_s: float = 2.0) -> float:
    start_s = time.monotonic()
    while generator.running:
        assert time.monotonic() - start_s < limit_s, f"{generator.running} sequences still run"
        time.sleep(0.005)
    return time.monotonic() - start_s


def wait_until_running(generator: FakeGenerator, num: int) -> None:
    deadline_s = time.monotonic() + 5.0
    while len(generator.submits) < num:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def connect(served: Served, body: dict[str, object]) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_frees_all_sequences(serve: Serve, stream: bool) -> None:
    served = serve(FakeGenerator(delay_s=0.02))
    connection = connect(served, BODY | {"stream": stream})
    wait_until_running(served.generator, 3)
    if stream:
        assert b"text/event-stream" in connection.recv(4096)
    connection.close()
    wait_until_freed(served.generator)
    assert served.generator.cancelled == 3
    assert 'finished_reason="abort",model_name="mixtral-test"} 3.0' in httpx.get(served.url + "/metrics").text


def test_leaving_before_the_first_token(serve: Serve) -> None:
    served = serve(FakeGenerator(delay_s=5.0))
    connection = connect(served, BODY | {"stream": True})
    wait_until_running(served.generator, 3)
    connection.close()
    assert wait_until_freed(served.generator) < 1.0


def test_closing_the_clients_stream(serve: Serve) -> None:
    served = serve(FakeGenerator(delay_s=0.01))
    with served.client() as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=400, stream=True)
        next(iter(stream))
        stream.close()
    wait_until_freed(served.generator)


def test_a_client_that_does_not_read_gets_few_large_chunks(serve: Serve) -> None:
    served = serve(FakeGenerator(), max_context=200_000)
    served.generator.outputs = [served.ids("hello")]
    connection = connect(served, BODY | {"stream": True, "max_tokens": 100_000, "n": 1})
    wait_until_running(served.generator, 1)
    wait_until_freed(served.generator, limit_s=60.0)  # generation does not wait for the reader
    received = b""
    while b"[DONE]" not in received[-100:]:
        received += connection.recv(1 << 20)
    connection.close()
    events = received.count(b"data: {")
    assert events < 100_000
