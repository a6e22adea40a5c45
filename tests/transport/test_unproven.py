"""What connections may cost that have not proved themselves: memory, number, time, and what they get into the log."""

import gc
import logging
import socket
import time
import tracemalloc
from dataclasses import replace

import pytest
import torch

import transport.server
from protos.dispatch_pb2 import Header, Hello
from tests.transport.driving import (
    CREDENTIALS,
    Answers,
    connected,
    dial,
    echo,
    expert_rows,
    random_rows,
    start_handshake,
    turn_until,
)
from transport.frames import encode_head
from transport.handshake import MAX_UNPROVEN, PROOF_TIMEOUT_S
from transport.loop import Loop
from transport.server import Session, SocketServer
from transport.socket import RequestServer, SocketPeer

MAX_BYTES_EACH = 8192  # 4 KiB and what Python needs for a session, a connection and a timer


def turn(loop: Loop, times: int) -> None:
    for _ in range(times):
        loop.run_once(0.0)


@pytest.mark.parametrize("over_tcp", [False, True])
def test_whoever_connects_to_a_process_that_computes_proves_himself_in_its_turns(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, over_tcp: bool
) -> None:
    """A turn of an expert actor may take longer than a proof may: that is not the router's fault."""
    monkeypatch.setattr(transport.server, "PROOF_TIMEOUT_S", 0.1)
    busy = Loop()
    server = RequestServer(busy, "expert", CREDENTIALS, "127.0.0.1", echo)
    address = replace(server.address, host_id="elsewhere") if over_tcp else server.address
    peer = SocketPeer(loop, address, CREDENTIALS, "router")
    for _ in range(4):
        turn(loop, 3)
        busy.run_once(0.0)
        time.sleep(0.2)
    turn(loop, 3)
    assert peer.ready
    assert server.num_unproven == 0
    peer.close()
    server.close()
    busy.close()


@pytest.mark.parametrize("over_tcp", [False, True])
def test_one_turn_of_the_other_side_is_enough_to_connect(loop: Loop, over_tcp: bool) -> None:
    """An actor that was lost is asked again as soon as it has turned its loop, which may take it half a minute."""
    busy = Loop()
    server = RequestServer(busy, "expert", CREDENTIALS, "127.0.0.1", echo)
    address = replace(server.address, host_id="elsewhere") if over_tcp else server.address
    peer = SocketPeer(loop, address, CREDENTIALS, "router")
    turn(loop, 3)
    busy.run_once(0.0)
    turn(loop, 3)
    assert peer.ready
    peer.close()
    server.close()
    busy.close()


@pytest.mark.parametrize("over_tcp", [False, True])
def test_silent_connections_hold_little_and_are_capped(loop: Loop, over_tcp: bool, seed: int) -> None:
    server = RequestServer(loop, "echo", CREDENTIALS, "127.0.0.1", echo)
    address = replace(server.address, host_id="elsewhere") if over_tcp else server.address
    first = connected(loop, address)
    strangers: list[socket.socket] = []
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(4 * MAX_UNPROVEN):
            sock = socket.socket(socket.AF_INET if over_tcp else socket.AF_UNIX)
            sock.connect((address.tcp_host, address.tcp_port) if over_tcp else address.unix_path)
            sock.sendall(b"MNT3"[: number % 5])
            strangers.append(sock)
            turn(loop, 2)
            assert server.num_unproven <= MAX_UNPROVEN
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert server.num_unproven == MAX_UNPROVEN
    assert held < 4 * MAX_UNPROVEN * MAX_BYTES_EACH / 2, "half a MiB of it is this test's own sockets"
    late = connected(loop, address)  # they keep nobody out
    for peer in (first, late):
        rows_TD, answers = random_rows(2, 4, seed), Answers()
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda now=answers: bool(now), loop)
        assert isinstance(answers[0], torch.Tensor)
        peer.close()
    for sock in strangers:
        sock.close()
    turn_until(lambda: server.num_unproven == 0, loop)
    server.close()


def test_the_oldest_goes_first(loop: Loop) -> None:
    server = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    strangers = [dial(server.address) for _ in range(MAX_UNPROVEN + 3) if turn(loop, 2) is None]
    turn_until(lambda: server.num_unproven == MAX_UNPROVEN, loop)
    turn(loop, 4)
    for sock in strangers:
        sock.setblocking(False)
    for sock in strangers[:3]:
        assert sock.recv(1) == b"", "it was sent away"
    for sock in strangers[3:]:
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    for sock in strangers:
        sock.close()
    server.close()


def test_one_that_says_half_a_hello_has_no_longer_than_a_silent_one(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PROOF_TIMEOUT_S <= 5.0
    monkeypatch.setattr(transport.server, "PROOF_TIMEOUT_S", 0.1)
    server = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    hello = encode_head(start_handshake().start(), 0)
    slow, second = dial(server.address), dial(server.address)
    slow.sendall(hello[:30])
    second.sendall(hello)
    turn_until(lambda: server.num_unproven == 2, loop)
    turn_until(lambda: server.num_unproven == 0, loop)
    assert server.num_callers == 0
    slow.close()
    second.close()
    server.close()


@pytest.mark.parametrize("role", ["router\nERROR all is lost", "\x1b[2Jrouter", "router\r\n", "\u202erouter"])
def test_a_stranger_cannot_write_into_the_log(loop: Loop, caplog: pytest.LogCaptureFixture, role: str) -> None:
    caplog.set_level(logging.DEBUG)
    server = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    hello = start_handshake().start()
    hello.hello.role = role
    with dial(server.address) as stranger:
        stranger.sendall(encode_head(hello, 0))
        turn_until(lambda: bool(caplog.records), loop)
    assert server.num_unproven == 0
    for record in caplog.records:
        assert record.getMessage().isprintable(), record
    server.close()


def test_one_of_another_version_is_told_ours(loop: Loop) -> None:
    """So that its own log can say why, whatever its version: prefixes of all versions begin alike."""
    server = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    old = b"MNT2" + encode_head(Header(hello=Hello(nonce=b"n" * 32, role="router")), 0)[4:]
    with dial(server.address) as stranger:
        stranger.sendall(old)
        loop.run_once(1.0)
        assert server.num_unproven == 0
        assert stranger.recv(4) == b"MNT3"
    server.close()


def test_what_an_older_server_answers_is_told_as_another_version(loop: Loop) -> None:
    """A server of another version answers in its own frames, or closes without a word."""
    answers = [b"MNT2" + encode_head(Header(hello=Hello(nonce=b"n" * 32)), 0)[4:], b""]
    listening = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    address = replace(listening.address, unix_path=f"{listening.address.unix_path}.old")
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(address.unix_path)
        old.listen()
        for answer in answers:
            peer = SocketPeer(loop, address, CREDENTIALS, "node")
            sock, _ = old.accept()
            sock.recv(1 << 16)
            sock.sendall(answer)
            sock.close()
            turn_until(lambda peer=peer: "not connected" not in peer.last_error, loop)
            assert "version of Manta" in peer.last_error
            peer.close()
    listening.close()


def test_proven_sessions_do_not_count(loop: Loop) -> None:
    sessions: list[Session] = []
    server = SocketServer(loop, "node", CREDENTIALS, None, lambda session, frame: sessions.append(session))
    peers = [connected(loop, server.address) for _ in range(3)]
    turn_until(lambda: server.num_admitted == 3, loop)
    assert server.num_unproven == 0
    for peer in peers:
        peer.close()
    turn_until(lambda: server.num_admitted == 0, loop)
    server.close()
