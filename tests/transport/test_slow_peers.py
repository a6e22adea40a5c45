"""Peers that are silent, slow or do not read: they are noticed, hold up nobody, and fill nobody's memory."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch

import transport.connection
import transport.socket
from protos.dispatch_pb2 import Header
from tests.transport.driving import (
    CREDENTIALS,
    Answers,
    dial,
    echo,
    expert_rows,
    random_rows,
    read_frame,
    start_handshake,
    turn_until,
)
from transport.base import Request
from transport.errors import CallError, PeerLost
from transport.frames import encode_head
from transport.link import ANSWER_TIMEOUT_S
from transport.loop import Loop
from transport.socket import RequestServer, SocketPeer

SOON_S = 0.2


@contextmanager
def peer_of(
    loop: Loop, server: RequestServer, answer_timeout_s: float = ANSWER_TIMEOUT_S, calls_expire: bool = False
) -> Iterator[SocketPeer]:
    peer = SocketPeer(
        loop, server.address, CREDENTIALS, "node", answer_timeout_s=answer_timeout_s, calls_expire=calls_expire
    )
    turn_until(lambda: peer.ready, loop)
    yield peer
    peer.close()


def call(peer: SocketPeer, rows_TD: torch.Tensor) -> Answers:
    answers: Answers = []
    peer.call(expert_rows(rows_TD), rows_TD, answers.append)
    return answers


def test_a_call_that_is_never_answered_is_lost_after_the_time_limit(loop: Loop, seed: int) -> None:
    """The process lives, turns its loop and answers pings: only the answer is missing."""
    held: list[Request] = []
    server = RequestServer(loop, "expert", CREDENTIALS, None, held.extend)
    with peer_of(loop, server, SOON_S, calls_expire=True) as peer:
        begun_s = time.monotonic()
        answers = call(peer, random_rows(2, 4, seed))
        turn_until(lambda: bool(answers), loop)
        (lost,) = answers
        assert isinstance(lost, PeerLost)
        assert lost.with_rows, "it has had them: so many replicas are tried with these rows, and no more"
        assert f"a call was not answered within {SOON_S:g} s (limits.answer_timeout_s)" in str(lost)
        assert time.monotonic() - begun_s >= SOON_S
        assert peer.rows_in_flight == 0
        turn_until(lambda: peer.ready, loop)  # over a new connection
    server.close()


def test_calls_that_are_answered_one_after_the_other_do_not_expire(loop: Loop, seed: int) -> None:
    held: list[Request] = []
    server = RequestServer(loop, "expert", CREDENTIALS, None, held.extend)
    with peer_of(loop, server, SOON_S, calls_expire=True) as peer:
        answers: Answers = []
        rows_TD = random_rows(2, 4, seed)
        for _ in range(3):
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        until_s = time.monotonic() + 4 * SOON_S
        while time.monotonic() < until_s:
            loop.run_once(0.01)
            if held:
                echo([held.pop(0)])
                peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        assert answers
        assert all(isinstance(answer, torch.Tensor) for answer in answers)
    server.close()


def test_where_callers_bound_their_calls_themselves_none_expires_while_pings_are_answered(
    loop: Loop, seed: int
) -> None:
    held: list[Request] = []
    server = RequestServer(loop, "router", CREDENTIALS, None, held.extend)
    with peer_of(loop, server, SOON_S) as peer:
        answers = call(peer, random_rows(2, 4, seed))
        until_s = time.monotonic() + 4 * SOON_S
        while time.monotonic() < until_s:
            loop.run_once(0.01)
        assert answers == []
        echo(held)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], torch.Tensor)
    server.close()


@pytest.mark.parametrize("with_call", [False, True])
def test_a_connection_over_which_nothing_comes_is_made_anew(loop: Loop, with_call: bool, seed: int) -> None:
    """The other side stands still, with or without a call: nothing is closed, nothing is answered."""
    there = Loop()
    server = RequestServer(there, "router", CREDENTIALS, None, echo)
    changes: list[bool] = []
    peer = SocketPeer(
        loop, server.address, CREDENTIALS, "node", lambda: changes.append(peer.ready), answer_timeout_s=SOON_S
    )
    turn_until(lambda: peer.ready, loop, there)
    answers = call(peer, random_rows(2, 4, seed)) if with_call else Answers()
    turn_until(lambda: not peer.ready, loop)  # without `there`
    assert f"nothing was heard for {SOON_S:g} s" in peer.last_error
    assert [type(answer) for answer in answers] == [PeerLost] * with_call
    turn_until(lambda: peer.ready, loop, there)
    assert changes == [True, False, True]
    peer.close()
    server.close()
    there.close()


def test_an_idle_connection_stays(loop: Loop) -> None:
    server = RequestServer(loop, "router", CREDENTIALS, None, echo)
    changes: list[bool] = []
    peer = SocketPeer(
        loop, server.address, CREDENTIALS, "node", lambda: changes.append(peer.ready), answer_timeout_s=SOON_S
    )
    until_s = time.monotonic() + 5 * SOON_S
    while time.monotonic() < until_s:
        loop.run_once(0.01)
    assert changes == [True]
    peer.close()
    server.close()


def test_time_in_which_this_process_stood_still_does_not_count(loop: Loop) -> None:
    """A whole host that was suspended: the first turn afterwards finds everything overdue."""
    server = RequestServer(loop, "router", CREDENTIALS, None, echo)
    with peer_of(loop, server, SOON_S) as peer:
        for _ in range(3):
            time.sleep(2 * SOON_S)
            loop.run_once(0.0)
            loop.run_once(0.0)
            assert peer.ready
    server.close()


def proven(loop: Loop, server: RequestServer) -> socket.socket:
    """A blocking socket whose handshake is complete."""
    sock, handshake = dial(server.address), start_handshake()
    sock.sendall(encode_head(handshake.start(), 0))
    turn_until(lambda: server.num_unproven == 1, loop)
    loop.run_once(0.1)
    challenge = read_frame(sock)
    assert challenge is not None
    sock.sendall(encode_head(handshake.receive(challenge.header), 0))
    turn_until(lambda: server.num_unproven == 0, loop)
    return sock


def test_who_does_not_take_answers_is_not_read_from_and_holds_up_nobody(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    limit, frame_bytes = 1 << 20, 1 << 18
    monkeypatch.setattr(transport.socket, "MAX_UNTAKEN_BYTES", limit)
    served: list[int] = []

    def serve(requests: list[Request]) -> None:
        served.extend(len(one.rows_TD) for one in requests)
        echo(requests)

    server = RequestServer(loop, "expert", CREDENTIALS, None, serve)
    greedy = proven(loop, server)
    rows_TD = torch.zeros(1 << 8, 1 << 8)
    message = encode_head(expert_rows(rows_TD), rows_TD.nbytes, 1) + bytes(rows_TD.nbytes)
    assert rows_TD.nbytes == frame_bytes
    greedy.setblocking(False)
    num_sent = 0
    with peer_of(loop, server) as honest:
        for _ in range(400):
            with suppress(BlockingIOError):
                num_sent += greedy.send(message[num_sent % len(message) :])
            loop.run_once(0.0)
        (session,) = [one for one in server._server.admitted if one.outbox_bytes]  # pyright: ignore[reportPrivateUsage]
        assert limit < session.outbox_bytes <= limit + 64 * frame_bytes
        num_served = len(served)
        for _ in range(20):
            loop.run_once(0.0)
        assert len(served) == num_served, "nothing of it is taken any more"
        answers = call(honest, random_rows(2, 4, seed))
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], torch.Tensor)

        def took_some() -> bool:
            with suppress(BlockingIOError):
                greedy.recv(1 << 20)
            return len(served) > num_served and session.outbox_bytes <= limit

        turn_until(took_some, loop)  # it reads at last: what it had sent meanwhile is served
    greedy.close()
    server.close()


def test_a_callee_that_takes_nothing_is_given_up(loop: Loop, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(transport.connection, "MAX_UNSENT_BYTES", 1 << 20)
    there = Loop()
    server = RequestServer(there, "expert", CREDENTIALS, None, echo)
    peer = SocketPeer(loop, server.address, CREDENTIALS, "router")
    turn_until(lambda: peer.ready, loop, there)
    rows_TD = torch.zeros(1 << 10, 1 << 8)
    answers: Answers = []
    longest_s = 0.0
    for _ in range(64):
        begun_s = time.thread_time()
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        longest_s = max(longest_s, time.thread_time() - begun_s)
    turn_until(lambda: len(answers) == 64, loop)
    assert all(isinstance(answer, PeerLost) for answer in answers)
    assert "has not taken" in str(answers[0])
    assert longest_s < 1.0
    peer.close()
    server.close()
    there.close()


def test_why_a_call_failed_is_told_in_a_frame_of_few_bytes(loop: Loop, seed: int) -> None:
    """Whatever went into the message: a failed step repeats it for each of its sequences."""

    def refuse(requests: list[Request]) -> None:
        for request in requests:
            request.responder.fail(CallError("internal" * 1000, "why " * (8 << 20)))

    server = RequestServer(loop, "expert", CREDENTIALS, None, refuse)
    with peer_of(loop, server) as peer:
        answers = call(peer, random_rows(2, 4, seed))
        turn_until(lambda: bool(answers), loop)
        (error,) = answers
        assert isinstance(error, CallError)
        assert error.message.startswith("why why ")
        assert (len(error.code), len(error.message)) == (64, 2004)
    server.close()


@pytest.mark.parametrize("answer_too", [False, True])
def test_a_message_over_what_a_frame_carries_fails_its_call_alone(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, answer_too: bool, seed: int
) -> None:
    held: list[Request] = []
    server = RequestServer(loop, "expert", CREDENTIALS, None, held.extend)
    with peer_of(loop, server) as peer:
        small, large = random_rows(1, 4, seed), random_rows(1 << 9, 4, seed)
        waiting = call(peer, small)
        asked_for_much = call(peer, small)
        turn_until(lambda: len(held) == 2, loop)
        monkeypatch.setattr("transport.frames.MAX_BODY_BYTES", 1 << 10)
        if answer_too:
            held[1].responder.reply(large)
            refused = asked_for_much
        else:
            refused = call(peer, large)
            held[1].responder.reply(small)
        held[0].responder.reply(small)
        turn_until(lambda: bool(waiting and refused and asked_for_much), loop)
        assert isinstance(waiting[0], torch.Tensor)
        assert isinstance(refused[0], CallError)
        assert refused[0].code == "internal"
        assert "a body of 8192 was to be sent; allowed: " in refused[0].message
        assert peer.ready
        assert peer.rows_in_flight == 0
    server.close()


def test_pings_are_answered_by_whoever_turns_his_loop(loop: Loop) -> None:
    server = RequestServer(loop, "expert", CREDENTIALS, None, echo)
    with proven(loop, server) as sock:
        ping = Header()
        ping.ping.SetInParent()
        for _ in range(3):
            sock.sendall(encode_head(ping, 0))
            loop.run_once(0.1)
            frame = read_frame(sock)
            assert frame is not None
            assert frame.header.ping.answer
    server.close()
