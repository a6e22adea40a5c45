"""Connections that are slow on purpose: closed in time, and honest ones beside them are not."""

import asyncio
import pkgutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn import config as uvicorn_config

from cluster.ray_session import RAY_ENVIRONMENT
from serving import http_guard
from serving.http_guard import (
    HEAD_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    SEND_TIMEOUT_S,
    install,
    max_connections,
    setting_s,
)

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers as much as the path says, in MiB, and tells when it was left; `X-Read`: what it was sent, at the end."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
        return
    if scope["path"] == "/left":
        while (await receive())["type"] != "http.disconnect":
            pass
        ENDED.append(-1)
        return
    num, headers = int(scope["path"].strip("/") or 0), dict(scope["headers"])
    await asyncio.sleep(float(headers.get(b"x-pause-s", 0)))
    body = await read_body(receive) if b"x-read" in headers else b"end"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        for _ in range(num):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    finally:
        ENDED.append(num)
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes:
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


ENDED: list[int] = []


@pytest.fixture(params=["none"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    """The parameter: uvicorn's `ws`; Serve's proxy has "auto"."""
    monkeypatch.setenv(HEAD_TIMEOUT_S, "0.5")
    monkeypatch.setenv(SEND_TIMEOUT_S, "1")
    monkeypatch.setitem(uvicorn_config.HTTP_PROTOCOLS, "auto", uvicorn_config.HTTP_PROTOCOLS["auto"])
    assert install() == []
    ENDED.clear()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws=request.param, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server
    server.should_exit = server.force_exit = True
    thread.join(10)


@contextmanager
def connected(server: uvicorn.Server) -> Iterator[socket.socket]:
    address = server.servers[0].sockets[0].getsockname()
    with socket.create_connection(address, timeout=10) as connection:
        yield connection


def is_closed(connection: socket.socket) -> bool:
    """Waits for the other end to close it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def sends(connection: socket.socket, data: bytes) -> bool:
    """Sends it, and waits a little; whether the other end still takes it."""
    time.sleep(0.02)
    try:
        connection.sendall(data)
    except ConnectionError:
        return False
    return True


def read_answers(connection: socket.socket, num: int) -> list[bytes]:
    """The bodies of so many answers, which come in chunks."""
    bodies: list[bytes] = []
    with connection.makefile("rb") as file:
        for _ in range(num):
            assert file.readline().startswith(b"HTTP/1.1 200")
            while file.readline() != b"\r\n":
                pass
            body = b""
            while size := int(file.readline(), 16):
                body += file.read(size)
                file.readline()
            file.readline()
            bodies.append(body)
    return bodies


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X-Long: y"])
def test_a_head_that_does_not_end(server: uvicorn.Server, sent: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(sent)
        assert is_closed(connection)
    assert not server.server_state.connections


def test_a_head_that_comes_byte_by_byte_gets_no_more_time(server: uvicorn.Server) -> None:
    with connected(server) as connection:
        began_s = time.monotonic()
        assert not all(sends(connection, b"G") for _ in range(500))
        assert time.monotonic() - began_s < 5


def test_a_second_head_has_its_time_too(server: uvicorn.Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # kept alive meanwhile
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert is_closed(connection)


def test_an_answer_may_take_longer_than_a_head(server: uvicorn.Server) -> None:
    """However the request was cut: in the middle of its head, before its body, within it."""
    request = b"POST / HTTP/1.1\r\nX-Pause-S: 1.2\r\nContent-Length: 4\r\n\r\nbody"
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(server)) for _ in range(5)]
        for connection, cuts in zip(connections, ((), (9,), (-4,), (-2,), (9, -4)), strict=True):
            for start, end in zip((0, *cuts), (*cuts, len(request)), strict=True):
                connection.sendall(request[start:end])
                time.sleep(0.02)
        for connection in connections:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("tail", [b"\r\n", b"G", HEAD])
def test_what_follows_a_request_does_not_end_its_answer(server: uvicorn.Server, tail: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nX-Pause-S: 1.2\r\nContent-Length: 4\r\n\r\nbody")
        time.sleep(0.05)
        connection.sendall(tail)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(tail)
        while not is_closed(connection):  # after the rest of the answer
            pass


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"])
def test_a_head_without_an_end_in_size(server: uvicorn.Server, before: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(before + HEAD + b"X-Long: ")
        assert not all(sends(connection, b"y" * (MAX_HEAD_BYTES // 4)) for _ in range(20))


@pytest.mark.parametrize("reads", [b"", b"X-Read: 1\r\n"])
@pytest.mark.parametrize(
    ("before", "endless"),
    [
        (b"1\r\na\r\n0\r\n", b"X-Short: y\r\n"),
        (b"1\r\na\r\n0\r\nX-Long: ", b"y"),
        (b"1\r\na\r\n1;long=", b"y"),
        (b"0", b"0"),
    ],
    ids=["trailers", "one trailer", "an extension of a chunk", "a size of a chunk"],
)
def test_what_is_neither_head_nor_body_has_an_end(
    server: uvicorn.Server, before: bytes, endless: bytes, reads: bytes
) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + reads + b"Transfer-Encoding: chunked\r\n\r\n" + before)
        assert not all(sends(connection, endless * (MAX_HEAD_BYTES // 4 // len(endless))) for _ in range(20))


def test_a_body_in_many_chunks(server: uvicorn.Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nX-Read: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            assert sends(connection, b"1;extension=long\r\na\r\n" * 500)
        connection.sendall(b"0\r\nX-Trailer: y\r\n\r\n")
        assert read_answers(connection, 1) == [b"a" * 25000]


@pytest.mark.parametrize("body", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n99999\r\n"])
def test_a_body_that_trickles_on_after_its_answer(server: uvicorn.Server, body: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + body)
        assert read_answers(connection, 1) == [b"end"]
        assert not all(sends(connection, b"y") for _ in range(500))


@pytest.mark.parametrize("rest", [b"y", b"yG", b"y" + HEAD])
def test_a_body_that_ends_after_its_answer_leaves_no_connection_for_ever(server: uvicorn.Server, rest: bytes) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx"
    with connected(server) as connection:
        for sent in (request, b"y" + HEAD + b"X-Pause-S: 0.8\r\n\r\n", request):  # an answer may take its time as ever
            connection.sendall(sent)
            assert read_answers(connection, 1) == [b"end"]
        connection.sendall(rest)
        assert is_closed(connection)


def test_pipelined_requests(server: uvicorn.Server) -> None:
    first = HEAD + b"X-Pause-S: 0.2\r\n\r\n"
    with connected(server) as few, connected(server) as many:
        few.sendall(first + (HEAD + b"\r\n") * MAX_PIPELINED)
        assert read_answers(few, 1 + MAX_PIPELINED) == [b"end"] * (1 + MAX_PIPELINED)
        many.sendall(first + (HEAD + b"\r\n") * 2000)
        assert is_closed(many)


WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("server", ["auto"], indirect=True)
def test_a_websocket_does_not_take_a_connection_from_an_answer_that_is_due(server: uvicorn.Server) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert read_answers(connection, 1) == [b"end"]
        connection.sendall(HEAD + WEBSOCKET + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 403")
    with connected(server) as connection:
        connection.sendall(b"GET /left HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD + WEBSOCKET + b"\r\n")
        time.sleep(0.1)
    deadline_s = time.monotonic() + 5
    while -1 not in ENDED:
        assert time.monotonic() < deadline_s, "nobody told the first request that its client has left"
        time.sleep(0.02)


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_client_that_leaves_is_noticed_whatever_it_has_pipelined(server: uvicorn.Server, others: int) -> None:
    """Else what it has asked for first would be made to the end, for nobody."""
    with connected(server) as connection:
        connection.sendall(b"GET /left HTTP/1.1\r\nHost: localhost\r\n\r\n" + (HEAD + b"\r\n") * others)
        time.sleep(0.1)
    deadline_s = time.monotonic() + 5
    while ENDED != [-1]:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    time.sleep(0.05)
    assert ENDED == [-1], "a request was begun whose client had left"


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAA\r\n"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 4\r\n\r\nbody", b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("cut", [0, 9, -4])
def test_an_offer_of_another_protocol_is_declined(server: uvicorn.Server, body: bytes, cut: int) -> None:
    """Java's client makes one with each request; uvicorn alone loses the body of each, and all that follows."""
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Read: 1\r\n" + UPGRADE + body
    with connected(server) as connection:
        for _ in range(2):
            for part in (request[:cut], request[cut:]):
                connection.sendall(part)
                time.sleep(0.02)
            assert read_answers(connection, 1) == [b"body"]
        connection.sendall(request * 3)
        assert read_answers(connection, 3) == [b"body"] * 3
        connection.sendall(request * 2000)  # each declined within what follows the one before
        while not is_closed(connection):
            pass


@pytest.mark.parametrize(
    "line", [b"CONNECT localhost:80 HTTP/1.1\r\n", b"CONNECT / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n"]
)
def test_what_is_no_request(server: uvicorn.Server, line: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(line + UPGRADE + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_a_client_that_does_not_read(server: uvicorn.Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /64 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline_s = time.monotonic() + 20
        while server.server_state.connections or not ENDED:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


@pytest.mark.parametrize("request_first", [True, False])
def test_a_connection_too_many_is_refused_and_the_others_go_on(
    server: uvicorn.Server, monkeypatch: pytest.MonkeyPatch, request_first: bool
) -> None:
    monkeypatch.setenv(MAX_CONNECTIONS, "3")
    monkeypatch.setenv(HEAD_TIMEOUT_S, "20")
    with ExitStack() as stack:
        kept = [stack.enter_context(connected(server)) for _ in range(3)]
        kept[0].sendall(b"GET / HTTP/1.1\r\nX-Pause-S: 1\r\n\r\n")  # is answered after the others were refused
        time.sleep(0.1)
        for _ in range(20):
            with connected(server) as refused:
                if request_first:
                    refused.sendall(b"x")
                answer = b""
                while not answer.endswith(b"later.\n"):
                    answer += refused.recv(4096)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nRetry-After: 1\r\n" in answer
                assert b"MANTA_HTTP_MAX_CONNECTIONS" in answer
                assert is_closed(refused)
        assert len(server.server_state.connections) == 3
        for connection in kept[1:]:
            connection.sendall(HEAD + b"\r\n")
        for connection in kept:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        kept[1].close()
        time.sleep(0.1)
        with connected(server) as next_one:
            next_one.sendall(HEAD + b"\r\n")
            assert next_one.recv(4096).startswith(b"HTTP/1.1 200")


def test_more_connections_than_descriptors_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": 1024}
    monkeypatch.setattr(http_guard.resource, "getrlimit", lambda which: (limits["soft"], limits["soft"]))
    monkeypatch.delenv(MAX_CONNECTIONS, raising=False)
    assert max_connections() == 1024 - http_guard.KEPT_DESCRIPTORS
    limits["soft"] = 1 << 20
    assert max_connections() == http_guard.DEFAULT_MAX_CONNECTIONS
    limits["soft"] = http_guard.resource.RLIM_INFINITY
    monkeypatch.setenv(MAX_CONNECTIONS, "9000")
    assert max_connections() == 9000
    for wrong in ("0", "-1", "many", "1.5", ""):
        monkeypatch.setenv(MAX_CONNECTIONS, wrong)
        with pytest.raises(ValueError, match=f"{MAX_CONNECTIONS} is '{wrong}': it must be a whole number above 0"):
            install()


def test_honest_clients(server: uvicorn.Server) -> None:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    with httpx.Client(trust_env=False, timeout=20, headers={"X-Large": "x" * 8000}) as client:
        for _ in range(3):
            assert len(client.get(f"http://{host}:{port}/2").content) == (2 << 20) + 3
            assert client.get(f"http://{host}:{port}/", headers={"X-Pause-S": "1.2"}).status_code == 200
            # Answered before it is read; a head comes after it on the same connection.
            assert client.post(f"http://{host}:{port}/", content=bytes(4 * MAX_HEAD_BYTES)).status_code == 200


def test_the_name_by_which_it_is_installed() -> None:
    assert pkgutil.resolve_name(RAY_ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]) is install


def test_a_time_out_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("0", "-1", "nan"):
        monkeypatch.setenv(HEAD_TIMEOUT_S, wrong)
        with pytest.raises(ValueError, match=f"{HEAD_TIMEOUT_S} is '{wrong}'"):
            setting_s(HEAD_TIMEOUT_S)
    monkeypatch.delenv(HEAD_TIMEOUT_S)
    assert setting_s(HEAD_TIMEOUT_S) == http_guard.DEFAULTS_S[HEAD_TIMEOUT_S]
