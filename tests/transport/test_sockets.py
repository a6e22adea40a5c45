"""SocketPeer and RequestServer over real sockets, both ends on one loop: answers, refusals, and who gets in."""

import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import transport.connection
import transport.link
import transport.listener
import transport.server
from protos.dispatch_pb2 import ExpertRows, Header, Hello, LayerRows, Rows
from protos.generation_pb2 import Cancel
from tests.transport.driving import (
    CREDENTIALS,
    Answers,
    connected,
    dial,
    echo,
    echo_without_expert_3,
    expert_rows,
    random_rows,
    read_frame,
    start_handshake,
    turn_until,
)
from transport.address import Address, listen
from transport.base import DegradedRows, Request, Service
from transport.credentials import Credentials
from transport.errors import CallError, PeerLost
from transport.frames import MAGIC, PREFIX, encode_head
from transport.loop import Loop
from transport.server import Session, SocketServer
from transport.socket import RequestServer, SocketPeer
from transport.tensors import MAX_REMEMBERED_BYTES, expert_header


@contextlib.contextmanager
def serving(loop: Loop, service: Service = echo, tcp_host: str | None = None) -> Iterator[RequestServer]:
    server = RequestServer(loop, "echo", CREDENTIALS, tcp_host, service)
    try:
        yield server
    finally:
        server.close()


class Full:
    """A listening socket of a process that has no descriptor left, until `full` is False."""

    def __init__(self, sock: socket.socket, why: int) -> None:
        self._sock, self._why = sock, why
        self.full, self.num_refused = True, 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.full:
            self.num_refused += 1
            raise OSError(self._why, os.strerror(self._why))
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def listen_without_room(monkeypatch: pytest.MonkeyPatch, why: int) -> list[Full]:
    """Makes every listening socket of a server such a one; returns where they are noted."""
    made: list[Full] = []

    def listen_full(role: str, tcp_host: str | None) -> tuple[Address, list[Any]]:
        address, (sock,) = listen(role, tcp_host)
        made.append(Full(sock, why))
        return address, list(made)

    monkeypatch.setattr(transport.server, "listen", listen_full)
    return made


@pytest.mark.parametrize("why", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_it_waits_a_moment_and_says_so_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: int
) -> None:
    """What waits to be accepted stays ready: without a pause, the thread that serves would do nothing but try."""
    made = listen_without_room(monkeypatch, why)
    with serving(loop) as server:
        peer = SocketPeer(loop, server.address, CREDENTIALS, "node")
        (full,) = made
        turn_until(lambda: full.num_refused > 0, loop)
        begun_s, num_turns = time.monotonic(), 0
        while time.monotonic() < begun_s + 3 * transport.listener.FULL_PAUSE_S:
            loop.run_once(0.5)
            num_turns += 1
        assert full.num_refused <= 5
        assert num_turns <= 20
        assert [record.levelname for record in caplog.records if "accept" in record.message] == ["WARNING"]
        full.full = False
        turn_until(lambda: peer.ready, loop)
        peer.close()


def test_a_listener_that_pauses_can_be_closed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    made = listen_without_room(monkeypatch, errno.EMFILE)
    with serving(loop) as server:
        stranger = dial(server.address)
        turn_until(lambda: made[0].num_refused > 0, loop)
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + 2 * transport.listener.FULL_PAUSE_S:
        loop.run_once(0.05)
    assert made[0].num_refused == 1
    stranger.close()


def authenticate(loop: Loop, address: Address) -> socket.socket:
    """Returns a blocking socket whose handshake is complete."""
    sock, handshake = dial(address), start_handshake()
    sock.sendall(encode_head(handshake.start(), 0))
    for _ in range(3):
        loop.run_once(0.1)
    challenge = read_frame(sock)
    assert challenge is not None
    sock.sendall(encode_head(handshake.receive(challenge.header), 0))
    return sock


def ended(loop: Loop, sock: socket.socket) -> bool:
    """Whether the server has closed the connection without a word."""
    for _ in range(3):
        loop.run_once(0.1)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # it closed with bytes of ours unread
        return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("over_tcp", [False, True])
def test_calls_are_answered(loop: Loop, dtype: torch.dtype, over_tcp: bool, seed: int) -> None:
    with serving(loop, tcp_host="127.0.0.1") as server:
        address = replace(server.address, host_id="elsewhere") if over_tcp else server.address
        peer = connected(loop, address)
        sent = [random_rows(num_rows, 8, seed + num_rows).to(dtype) for num_rows in (1, 5, 0, 2)]
        answers: Answers = []
        for rows_TD in sent:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        assert peer.rows_in_flight == 8
        turn_until(lambda: len(answers) == len(sent), loop)
        assert peer.rows_in_flight == 0
        assert all(torch.equal(answer, rows) for answer, rows in zip(answers, sent, strict=True))  # pyright: ignore[reportArgumentType]
        peer.close()


def test_an_answer_may_tell_of_missing_experts(loop: Loop, seed: int) -> None:
    with serving(loop, echo_without_expert_3) as server:
        peer = connected(loop, server.address)
        rows_TD, answers = random_rows(2, 4, seed), []
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], DegradedRows)
        assert torch.equal(answers[0].rows_TD, rows_TD)
        assert answers[0].missing_experts == (3,)
        assert peer.rows_in_flight == 0
        peer.close()


def test_what_arrives_in_one_turn_is_served_together(loop: Loop, seed: int) -> None:
    batches: list[int] = []

    def count(requests: list[Request]) -> None:
        batches.append(len(requests))
        echo(requests)

    with serving(loop, count) as server:
        peers = [connected(loop, server.address) for _ in range(3)]
        rows_TD, answers = random_rows(2, 4, seed), []
        for peer in peers:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == 6, loop)
        assert batches == [6]
        for peer in peers:
            peer.close()


def test_answers_may_come_in_any_order(loop: Loop, seed: int) -> None:
    held: list[Request] = []
    with serving(loop, held.extend) as server:
        peer = connected(loop, server.address)
        answers: dict[int, object] = {}
        for number in range(4):
            rows_TD = torch.full((1, 2), float(number))
            peer.call(expert_rows(rows_TD), rows_TD, lambda answer, number=number: answers.update({number: answer}))
        turn_until(lambda: len(held) == 4, loop)
        for request in (held[2], held[0], held[3], held[1]):
            request.responder.reply(request.rows_TD)
        turn_until(lambda: len(answers) == 4, loop)
        assert {number: float(answer[0, 0]) for number, answer in answers.items()} == {0: 0, 1: 1, 2: 2, 3: 3}  # pyright: ignore[reportIndexIssue, reportUnknownArgumentType]
        peer.close()


def test_large_bodies_both_ways_at_once(loop: Loop, seed: int) -> None:
    """More than the sockets hold, in both directions: neither side may wait for the other to read."""
    with serving(loop) as server:
        peer = connected(loop, server.address)
        sent = [random_rows(1024 + number, 2048, seed + number) for number in range(6)]
        answers: Answers = []
        for rows_TD in sent:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == len(sent), loop)
        for answer, rows_TD in zip(answers, sent, strict=True):
            assert isinstance(answer, torch.Tensor)
            assert torch.equal(answer, rows_TD)
        peer.close()


def test_many_small_calls_behind_a_full_socket_keep_their_order(loop: Loop, seed: int) -> None:
    with serving(loop) as server:
        peer = connected(loop, server.address)
        sent = [random_rows(1 + number % 7, 512, seed + number) for number in range(2000)]
        answers: Answers = []
        for rows_TD in sent:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == len(sent), loop)
        assert all(torch.equal(answer, rows) for answer, rows in zip(answers, sent, strict=True))  # pyright: ignore[reportArgumentType]
        peer.close()


def test_a_service_may_fail_a_call(loop: Loop, seed: int) -> None:
    def fail(requests: list[Request]) -> None:
        for request in requests:
            request.responder.fail(CallError("internal", "out of order"))

    with serving(loop, fail) as server:
        peer = connected(loop, server.address)
        answers: Answers = []
        peer.call(expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed), answers.append)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], CallError)
        assert (answers[0].code, answers[0].message) == ("internal", "out of order")
        peer.close()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (Header(cancel=Cancel(sequence_ids=[1])), "kind cancel"),
        (Header(), "kind None"),
        (Header(expert_rows=ExpertRows(rows=Rows(dtype=1, num_rows=9, width=9))), "its header describes 324"),
        (Header(layer_rows=LayerRows(rows=Rows(dtype=9, num_rows=1, width=2))), "dtype 9"),
    ],
)
def test_a_malformed_call_fails_alone(loop: Loop, header: Header, message: str, seed: int) -> None:
    with serving(loop) as server:
        peer = connected(loop, server.address)
        rows_TD, answers = random_rows(1, 2, seed), []
        peer.call(header, rows_TD, answers.append)
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == 2, loop)
        assert isinstance(answers[0], CallError)
        assert answers[0].code == "invalid_request"
        assert message in answers[0].message
        assert torch.equal(answers[1], rows_TD)
        peer.close()


def test_a_call_without_a_connection_is_lost_at_once(loop: Loop, seed: int) -> None:
    with serving(loop) as server:
        peer = SocketPeer(loop, server.address, CREDENTIALS, "node")
        answers: Answers = []
        peer.call(expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed), answers.append)
        assert isinstance(answers[0], PeerLost)
        assert not answers[0].with_rows
        peer.close()


def test_closing_a_peer_gives_its_calls_back(loop: Loop, seed: int) -> None:
    held: list[Request] = []
    with serving(loop, held.extend) as server:
        peer = connected(loop, server.address)
        answers: Answers = []
        peer.call(expert_rows(random_rows(3, 2, seed)), random_rows(3, 2, seed), answers.append)
        turn_until(lambda: bool(held), loop)
        peer.close()
        (lost,) = answers
        assert isinstance(lost, PeerLost)
        assert not lost.with_rows, "it is let go of: it may be well"
        assert peer.rows_in_flight == 0
        held[0].responder.reply(held[0].rows_TD)  # too late, and to nobody
        loop.run_once(0.05)
        assert len(answers) == 1


def test_a_send_that_fails_between_two_turns_is_noticed(loop: Loop, seed: int) -> None:
    """The node's engine sends between turns and then waits without a time limit: it has to hear of the failure."""
    server_loop = Loop()
    server = RequestServer(server_loop, "echo", CREDENTIALS, None, echo)
    peer = SocketPeer(loop, server.address, CREDENTIALS, "node")
    turn_until(lambda: peer.ready, loop, server_loop)
    server.close()
    answers: Answers = []
    peer.call(expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed), answers.append)
    started_s = time.monotonic()
    loop.run_once(20.0)
    (lost,) = answers
    assert isinstance(lost, PeerLost)
    assert not lost.with_rows, "it never got them"
    assert time.monotonic() - started_s < 5.0
    peer.close()
    server_loop.close()


def test_a_peer_that_goes_away_has_had_the_rows(loop: Loop, seed: int) -> None:
    held: list[Request] = []
    with serving(loop, held.extend) as server:
        peer = connected(loop, server.address)
        answers: Answers = []
        peer.call(expert_rows(random_rows(3, 2, seed)), random_rows(3, 2, seed), answers.append)
        turn_until(lambda: bool(held), loop)
        assert server.num_callers == 1
        server.close()
        turn_until(lambda: bool(answers), loop)
        (lost,) = answers
        assert isinstance(lost, PeerLost)
        assert lost.with_rows
        assert server.num_callers == 0
        peer.close()


def test_only_who_knows_the_key_is_a_caller(loop: Loop) -> None:
    with serving(loop) as server:
        stranger = dial(server.address)
        loop.run_once(0.1)
        assert server.num_callers == 0
        known = authenticate(loop, server.address)
        turn_until(lambda: server.num_callers == 1, loop)
        known.close()
        turn_until(lambda: server.num_callers == 0, loop)
        stranger.close()


def test_a_server_that_comes_back_at_the_same_path_is_found_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    changes: list[bool] = []
    with serving(loop) as server:
        address = server.address
        peer = SocketPeer(loop, address, CREDENTIALS, "node", lambda: changes.append(peer.ready))
        turn_until(lambda: peer.ready, loop)
    turn_until(lambda: not peer.ready, loop)
    time.sleep(0.1)

    def listen_there(role: str, tcp_host: str | None) -> tuple[Address, list[socket.socket]]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address.unix_path)
        sock.listen()
        return address, [sock]

    monkeypatch.setattr(transport.server, "listen", listen_there)
    with serving(loop):
        turn_until(lambda: peer.ready, loop)
        answers: Answers = []
        rows_TD = random_rows(2, 2, seed)
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], torch.Tensor)
        peer.close()
    assert changes[:3] == [True, False, True]


def test_nobody_at_the_address_is_not_an_exception(loop: Loop, socket_folder: Path) -> None:
    here = RequestServer(loop, "echo", CREDENTIALS, None, echo)
    here.close()
    nowhere = [here.address, replace(here.address, host_id="elsewhere", tcp_host="127.0.0.1", tcp_port=1)]
    for address in [*nowhere, replace(here.address, host_id="elsewhere")]:
        peer = SocketPeer(loop, address, CREDENTIALS, "node")
        for _ in range(3):
            loop.run_once(0.1)
        assert not peer.ready
        peer.close()


def test_a_host_that_does_not_answer_does_not_hold_up_the_loop(loop: Loop) -> None:
    """TCP to an address that drops everything: connecting takes minutes, a turn must not."""
    address = Address("elsewhere", "none", "203.0.113.1", 9)  # reserved for documentation (RFC 5737)
    started_s = time.monotonic()
    peer = SocketPeer(loop, address, CREDENTIALS, "node")
    loop.run_once(0.0)
    assert time.monotonic() - started_s < 2.0
    peer.close()


def strangers_messages() -> list[bytes]:
    rows_TD = torch.zeros(1, 2)
    call = encode_head(expert_rows(rows_TD), 8) + bytes(8)
    first = encode_head(start_handshake().start(), 0)
    forged = encode_head(Header(hello=Hello(proof=b"p" * 32)), 0)
    return [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        call,
        first + call,
        first + forged + call,
        PREFIX.pack(MAGIC, 1 << 20, 0, 0),  # a header that only an authenticated peer may send
        PREFIX.pack(MAGIC, 10, 1 << 29, 0),
        first + PREFIX.pack(MAGIC, 10, 1 << 29, 0),
    ]


@pytest.mark.parametrize("message", strangers_messages())
def test_without_the_key_nothing_gets_through(loop: Loop, message: bytes) -> None:
    served: list[Request] = []
    with serving(loop, served.extend) as server, dial(server.address) as stranger:
        stranger.sendall(message)
        for _ in range(3):
            loop.run_once(0.1)
        answer = stranger.recv(1 << 16)
        if answer:  # at most the server's half of a handshake, then the end
            assert len(answer) < 200
            assert ended(loop, stranger)
        assert served == []


@pytest.mark.parametrize("knows", ["server", "client"])
def test_two_services_do_not_talk(loop: Loop, knows: str) -> None:
    with serving(loop) as server:
        peer = SocketPeer(
            loop, server.address, CREDENTIALS if knows == "server" else Credentials(b"another service's"), "node"
        )
        ready: list[bool] = []
        for _ in range(5):
            loop.run_once(0.05)
            ready.append(peer.ready)
        assert any(ready) is (knows == "server")
        peer.close()


def test_a_peer_that_says_nothing_is_sent_away(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.server, "PROOF_TIMEOUT_S", 0.05)
    with serving(loop) as server, dial(server.address) as stranger:
        turn_until(lambda: server.num_unproven == 1, loop)
        turn_until(lambda: server.num_unproven == 0, loop)
        assert ended(loop, stranger)


def test_a_server_that_says_nothing_is_left_and_tried_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.link, "HANDSHAKE_TIMEOUT_S", 0.05)
    with serving(loop) as server:
        path = str(Path(server.address.unix_path).with_suffix(".mute"))
    accepted: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(path)
        mute.listen()
        mute.setblocking(False)
        peer = SocketPeer(loop, replace(server.address, unix_path=path), CREDENTIALS, "node")

        def tried_twice() -> bool:
            with contextlib.suppress(BlockingIOError):
                accepted.append(mute.accept()[0])
            return len(accepted) == 2

        turn_until(tried_twice, loop)
        assert not peer.ready
        peer.close()
    for sock in accepted:
        sock.close()


def after_the_handshake() -> list[tuple[str, Callable[[], bytes]]]:
    return [
        ("garbage", lambda: b"garbage that is no frame at all"),
        ("over-long header", lambda: PREFIX.pack(MAGIC, 1 << 25, 0, 0)),
        ("over-long body", lambda: PREFIX.pack(MAGIC, 0, 1 << 40, 0)),
        ("header that does not parse", lambda: PREFIX.pack(MAGIC, 4, 0, 7) + b"\xff" * 4),
    ]


@pytest.mark.parametrize(("what", "make"), after_the_handshake())
def test_a_bad_frame_closes_its_connection_and_nothing_else(
    loop: Loop, what: str, make: Callable[[], bytes], seed: int
) -> None:
    with serving(loop) as server:
        good = connected(loop, server.address)
        rows_TD = random_rows(2, 4, seed)
        with authenticate(loop, server.address) as bad:
            bad.sendall(encode_head(expert_rows(rows_TD), 32, call_id=7))
            bad.sendall(rows_TD.numpy().tobytes())
            for _ in range(3):
                loop.run_once(0.1)
            answer = read_frame(bad)
            assert answer is not None, "the handshake was complete"
            assert answer.call_id == 7
            bad.sendall(make())
            assert ended(loop, bad), what
        answers: Answers = []
        good.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], torch.Tensor)
        good.close()


def test_a_bad_frame_from_the_server_fails_the_calls_and_reconnects(loop: Loop, seed: int) -> None:
    sessions: list[Session] = []
    server = SocketServer(loop, "echo", CREDENTIALS, None, lambda session, _: sessions.append(session))
    peer = connected(loop, server.address)
    answers: Answers = []
    peer.call(expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed), answers.append)
    turn_until(lambda: bool(sessions), loop)
    sessions[0]._connection._socket.send(b"X" * 64)  # pyright: ignore[reportPrivateUsage]
    turn_until(lambda: bool(answers), loop)
    assert [type(answer) for answer in answers] == [PeerLost]
    assert "begins with" in str(answers[0])
    turn_until(lambda: peer.ready, loop)
    peer.close()
    server.close()


def test_an_answer_whose_header_does_not_parse_fails_every_call(loop: Loop, seed: int) -> None:
    """Its own one too: the rows are then sent to another peer."""
    waiting: list[tuple[Session, int]] = []
    server = SocketServer(
        loop, "echo", CREDENTIALS, None, lambda session, frame: waiting.append((session, frame.call_id))
    )
    peer = connected(loop, server.address)
    answers: Answers = []
    for _ in range(2):
        peer.call(expert_rows(random_rows(3, 2, seed)), random_rows(3, 2, seed), answers.append)
    turn_until(lambda: len(waiting) == 2, loop)
    session, call_id = waiting[0]
    damaged = PREFIX.pack(MAGIC, 4, 0, call_id) + b"\xff" * 4
    session._connection._socket.send(damaged)  # pyright: ignore[reportPrivateUsage]
    turn_until(lambda: len(answers) == 2, loop)
    assert [type(answer) for answer in answers] == [PeerLost, PeerLost]
    assert "does not parse" in str(answers[0])
    assert peer.rows_in_flight == 0
    peer.close()
    server.close()


@pytest.mark.parametrize("num_experts", [2, 500])
def test_calls_with_short_and_long_headers(loop: Loop, num_experts: int, seed: int) -> None:
    """Short headers are decoded once for all calls, long ones for each."""
    seen: list[list[int]] = []

    def service(requests: list[Request]) -> None:
        for request in requests:
            seen.append(list(request.header.expert_rows.expert_ids))
            request.responder.reply(request.rows_TD)

    rows_TD = random_rows(num_experts, 2, seed)
    header = expert_header(3, tuple((expert, 1) for expert in range(num_experts)), rows_TD)
    assert (len(header.SerializeToString()) > MAX_REMEMBERED_BYTES) == (num_experts == 500)
    server = RequestServer(loop, "echo", CREDENTIALS, None, service)
    peer = connected(loop, server.address)
    answers: Answers = []
    for _ in range(2):
        peer.call(header, rows_TD, answers.append)
    turn_until(lambda: len(answers) == 2, loop)
    assert seen == [list(range(num_experts))] * 2
    assert all(isinstance(answer, torch.Tensor) and torch.equal(answer, rows_TD) for answer in answers)
    peer.close()
    server.close()


def test_the_outbox_counts_what_the_other_side_has_not_taken(loop: Loop) -> None:
    lost: list[Session] = []
    sessions: list[Session] = []
    server = SocketServer(loop, "echo", CREDENTIALS, None, lambda session, _: sessions.append(session), lost.append)
    with authenticate(loop, server.address) as slow:
        slow.sendall(encode_head(Header(cancel=Cancel(sequence_ids=[1])), 0))
        turn_until(lambda: bool(sessions), loop)
        (session,) = sessions
        assert session.outbox_bytes == 0
        chunk = memoryview(bytearray(1 << 20))
        for _ in itertools.repeat(None, 16):
            session.send(Header(), chunk, 1)
        before = session.outbox_bytes
        assert before > 4 << 20
        turn_until(lambda: bool(slow.recv(1 << 20)) and session.outbox_bytes < before, loop)
    turn_until(lambda: bool(lost), loop)
    assert lost == [session]
    assert session.outbox_bytes == 0
    server.close()
