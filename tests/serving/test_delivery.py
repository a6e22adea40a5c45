"""Clients that do not read: how long a gateway waits for them and how much it keeps; their sequences are freed."""

import asyncio
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from serving.app import build_app
from serving.fake import FakeGenerator
from serving.metrics import GatewayMetrics
from serving.outlet import MARK_BYTES, PIECE_BYTES, ClientStalled, Outlet
from serving.settings import LEAST_UNREAD_BYTES, READ_AHEAD_BYTES, GatewaySettings, RequestLimits
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve

BODY = {"model": MODEL, "prompt": [5] * 40, "max_tokens": 900, "stream": True, "logprobs": 20, "n": 16}


class Holding:
    """An ASGI server that takes every message at once, as Ray Serve does, and hands them on when it is told to."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.bodies: list[bytes] = []
        self.last: list[Any] = []

    async def send(self, message: Any) -> None:
        self.held.append(message)

    def hand_on(self) -> None:
        for message in pickle.loads(pickle.dumps(self.held)):  # noqa: S301 - the test's own
            assert type(message) is dict
            self.bodies.append(message.get("body", b""))
        if self.held:  # Serve's generators keep their last batch until there is another one
            self.last, self.held = self.held, []


def limits(**changes: float) -> Any:
    return {"max_context": 4096, "limits": RequestLimits(**changes)}  # pyright: ignore[reportArgumentType]


def test_a_client_that_stops_reading_is_given_up(serve: Serve) -> None:
    """uvicorn makes `send` wait."""
    metrics = GatewayMetrics()
    generator = FakeGenerator(delay_s=0.001, outputs=[[5] * 4000])
    served = serve(generator, app_options={"metrics": metrics}, **limits(delivery_timeout_s=0.3))
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps(BODY | {"max_tokens": 4000}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        deadline_s = time.monotonic() + 30
        while not metrics.failures["client_stalled"]:
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.02)
    assert generator.running == 0
    assert generator.cancelled > 0
    assert set(metrics.failures) == {"client_stalled"}


def run(
    codec: TextCodec,
    generator: FakeGenerator,
    body: Any,
    server: Holding,
    each_turn: Callable[[], None],
    **changes: float,
) -> GatewayMetrics:
    """Answers one request with the server, whose `hand_on` is up to `each_turn`; returns when the answer has ended."""
    settings = GatewaySettings(model_name=MODEL, eos_token_ids=(1,), vocab_size=400, **limits(**changes))
    metrics = GatewayMetrics()
    app = build_app(settings, codec, generator, metrics=metrics)
    data = json.dumps(body).encode()

    async def answer() -> None:
        messages = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()
            return None

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
        task = asyncio.ensure_future(app(scope, receive, server.send))
        async with asyncio.timeout(30):
            while not task.done():
                each_turn()
                await asyncio.sleep(0.005)
        await task

    asyncio.run(answer())
    return metrics


@pytest.mark.parametrize(
    "changes", [{"delivery_timeout_s": 0.2}, {"max_unread_bytes": 100_000, "delivery_timeout_s": 1000}]
)
def test_a_server_that_holds_a_stream_is_given_up_too(codec: TextCodec, changes: dict[str, float]) -> None:
    generator, server = FakeGenerator(delay_s=0.002, outputs=[[5] * 4000]), Holding()
    metrics = run(codec, generator, BODY | {"max_tokens": 4000}, server, lambda: None, **changes)
    assert metrics.failures == {"client_stalled": 1}
    assert (generator.running, generator.cancelled) == (0, 16)
    assert sum(len(message.get("body", b"")) for message in server.held) < 4 << 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_reader_gets_all_of_it(codec: TextCodec, stream: bool) -> None:
    """The server takes in bursts, each within the time-out; what it holds of a whole answer is bounded meanwhile."""
    generator, server, most = FakeGenerator(delay_s=0.001), Holding(), [0]
    turns = [0]

    def each_turn() -> None:
        most[0] = max(most[0], sum(len(message.get("body", b"")) for message in server.held))
        turns[0] += 1
        if turns[0] % 20 == 0:
            server.hand_on()

    limits = {"delivery_timeout_s": 10} | ({} if stream else {"max_unread_bytes": LEAST_UNREAD_BYTES})
    metrics = run(codec, generator, BODY | {"stream": stream}, server, each_turn, **limits)
    server.hand_on()
    assert not metrics.failures
    assert all(len(body) < 2 * PIECE_BYTES for body in server.bodies)
    text = b"".join(server.bodies).decode()
    if stream:
        assert text.count('"finish_reason":"length"') == 16
        assert text.endswith("data: [DONE]\n\n")
    else:
        assert len(text) > 2 * READ_AHEAD_BYTES
        assert [len(choice["logprobs"]["tokens"]) for choice in json.loads(text)["choices"]] == [900] * 16
        assert most[0] < READ_AHEAD_BYTES + 2 * PIECE_BYTES


def test_what_is_let_go_of_is_counted() -> None:
    part = MARK_BYTES // 2

    async def check() -> None:
        held: list[Any] = []

        async def send(message: Any) -> None:
            held.append(message)

        async with Outlet(send, timeout_s=1.0, max_bytes=3 * MARK_BYTES) as outlet:
            await outlet.body(["a" * part], more=True)
            assert outlet.held_bytes == 0  # no message has told yet
            await outlet.body(["a" * (part - 2), "\u00e9"], more=True)
            assert outlet.held_bytes == 2 * part
            del held[0]
            assert outlet.held_bytes == 2 * part
            del held[0]
            assert outlet.held_bytes == 0
            await outlet.body(["a" * (3 * MARK_BYTES + 1)], more=True)
            with pytest.raises(ClientStalled, match="max_unread_bytes"):
                await outlet.body(["x"], more=True)
            held.clear()
            await outlet.body(["a" * 2 * part], more=True)
            await asyncio.sleep(1.1)
            with pytest.raises(ClientStalled, match="delivery_timeout_s"):
                await outlet.body([], more=False)
            held.clear()
            await outlet.body([], more=False)
            assert held[0]["more_body"] is False

    asyncio.run(check())


@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.5])
def test_a_send_that_never_returns_ends(delay_s: float) -> None:
    """However late in the answer it comes."""

    async def check() -> None:
        num_sent = 0

        async def send(message: Any) -> None:
            nonlocal num_sent
            del message
            num_sent += 1
            if num_sent == 2:
                await asyncio.Event().wait()

        async def answer() -> None:
            async with Outlet(send, timeout_s=0.2, max_bytes=1 << 20) as outlet:
                await outlet.body(["x"], more=True)
                await asyncio.sleep(delay_s)
                await outlet.body(["x"])

        began_s = time.monotonic()
        with pytest.raises(ClientStalled, match=r"0\.2 s"):
            await answer()
        assert delay_s + 0.2 <= time.monotonic() - began_s < delay_s + 10

    asyncio.run(check())


def test_a_send_that_returns_when_it_is_given_up_already() -> None:
    async def check() -> None:
        async def send(message: Any) -> None:
            del message
            while outlet._patience.when() is None:  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0)

        async def answer() -> None:
            async with outlet:
                await outlet.body(["x"], more=True)
                await asyncio.sleep(30)

        outlet = Outlet(send, timeout_s=0.05, max_bytes=1 << 20)
        with pytest.raises(ClientStalled, match=r"0\.05 s"):
            await answer()

    asyncio.run(check())


@pytest.mark.parametrize("end", [None, KeyError, asyncio.CancelledError])
def test_the_end_of_an_answer_leaves_no_timer(end: type[BaseException] | None) -> None:
    """What ended it comes out as it is."""

    async def send(message: Any) -> None:
        del message

    async def work() -> None:
        async with Outlet(send, timeout_s=0.05, max_bytes=1 << 20) as outlet:
            await outlet.body(["x"], more=True)
            await asyncio.sleep(0.2)  # longer than what is sent may wait
            if end is asyncio.CancelledError:
                await asyncio.Event().wait()
            if end is not None:
                raise end

    async def check() -> None:
        task = asyncio.ensure_future(work())
        await asyncio.wait([task], timeout=0.4)
        task.cancel()
        await asyncio.wait([task])
        ended: type[BaseException] | None = asyncio.CancelledError
        if not task.cancelled():
            ended = None if task.exception() is None else type(task.exception())
        assert ended is end
        timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # pyright: ignore
        assert [timer for timer in timers if not timer.cancelled()] == []

    asyncio.run(check())
