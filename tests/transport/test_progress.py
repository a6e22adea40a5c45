"""A callee that computes for longer than a call may be left unanswered, and says that it gets on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transport.socket
from protos.dispatch_pb2 import Header, Progress
from tests.transport.driving import CREDENTIALS, Answers, echo, expert_rows, random_rows, turn_until
from transport.base import Request
from transport.errors import PeerLost
from transport.frames import Frame
from transport.loop import Loop
from transport.socket import RequestServer, SocketPeer

TIMEOUT_S = 0.4
ROWS_TD = random_rows(2, 4, seed=1)


class Callee:
    """A server in a thread of its own; `serve` is its service."""

    def __init__(self, serve: Callable[["Callee", list[Request]], None]) -> None:
        self._loop = Loop()
        self.server = RequestServer(self._loop, "expert", CREDENTIALS, None, lambda requests: serve(self, requests))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def compute(self, seconds: float, tells: bool = True) -> None:
        """Computes for so long without a turn of the loop."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            time.sleep(TIMEOUT_S / 20)
            if tells:
                self.server.tell_progress()

    def end(self) -> None:
        self._loop.stop()
        self._thread.join()
        self.server.close()
        self._loop.close()


@contextmanager
def callee(serve: Callable[[Callee, list[Request]], None]) -> Iterator[Callee]:
    started = Callee(serve)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def caller(loop: Loop, called: Callee) -> Iterator[SocketPeer]:
    peer = SocketPeer(loop, called.server.address, CREDENTIALS, "router", answer_timeout_s=TIMEOUT_S, calls_expire=True)
    turn_until(lambda: peer.ready, loop)
    yield peer
    peer.close()


def call(peer: SocketPeer) -> Answers:
    answers: Answers = []
    peer.call(expert_rows(ROWS_TD), ROWS_TD, answers.append)
    return answers


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.socket, "PROGRESS_S", TIMEOUT_S / 10)


@pytest.mark.parametrize("tells", [True, False])
def test_a_call_that_takes_longer_than_the_limit_is_answered_if_the_callee_gets_on(loop: Loop, tells: bool) -> None:
    def serve(called: Callee, requests: list[Request]) -> None:
        called.compute(4 * TIMEOUT_S, tells)
        echo(requests)

    with callee(serve) as called, caller(loop, called) as peer:
        answers = call(peer)
        turn_until(lambda: bool(answers), loop)
        assert isinstance(answers[0], torch.Tensor if tells else PeerLost)


def test_calls_that_wait_behind_a_long_one_do_not_expire(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same caller and of another one: read and waiting their turn, and not read yet."""
    monkeypatch.setattr("transport.turns.MAX_ROWS", 2)
    monkeypatch.setattr("transport.socket.MAX_ROWS", 2)

    def serve(called: Callee, requests: list[Request]) -> None:
        begun.set()
        called.compute(2 * TIMEOUT_S)
        echo(requests)

    begun = threading.Event()
    with callee(serve) as called, caller(loop, called) as first, caller(loop, called) as second:
        answers = [call(first), call(first)]
        turn_until(begun.is_set, loop)
        answers += [call(second), call(first)]  # nobody reads them for as long as a call may take
        turn_until(lambda: all(answers), loop)
        assert all(isinstance(answer, torch.Tensor) for (answer,) in answers), answers


def test_a_call_that_was_forgotten_expires_though_the_callee_computes_for_others(loop: Loop) -> None:
    forgotten: list[Request] = []

    def serve(called: Callee, requests: list[Request]) -> None:
        if not forgotten:
            forgotten.extend(requests)
            return
        called.compute(TIMEOUT_S / 2)
        echo(requests)

    with callee(serve) as called, caller(loop, called) as peer, caller(loop, called) as other:
        lost = call(peer)
        turn_until(lambda: bool(forgotten), loop)
        answers: Answers = []
        num_asked = [0]

        def again_and_again() -> bool:
            if len(answers) == num_asked[0]:
                num_asked[0] += 1
                other.call(expert_rows(ROWS_TD), ROWS_TD, answers.append)
            return bool(lost)

        turn_until(again_and_again, loop)
        assert answers
        assert all(isinstance(answer, torch.Tensor) for answer in answers)
        assert isinstance(lost[0], PeerLost)
        assert "a call was not answered within" in str(lost[0])


def test_who_computes_for_a_moment_says_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.socket, "PROGRESS_S", 30.0)
    told: list[bool] = []

    def serve(called: Callee, requests: list[Request]) -> None:
        told.append(called.server.tell_progress())
        echo(requests)

    with callee(serve) as called, caller(loop, called) as peer:
        for _ in range(3):
            answers = call(peer)
            turn_until(lambda answers=answers: bool(answers), loop)
    assert told == [False] * 3


@given(st.integers(0, 2**64 - 1), st.integers(1, 5), st.booleans())
def test_only_a_word_of_the_oldest_call_counts(first_id: int, num_calls: int, is_progress: bool) -> None:
    loop = Loop()
    server = RequestServer(loop, "expert", CREDENTIALS, None, lambda requests: None)
    peer = SocketPeer(loop, server.address, CREDENTIALS, "router", calls_expire=True)
    turn_until(lambda: peer.ready, loop)
    assert peer._oldest() is None  # pyright: ignore[reportPrivateUsage]
    for _ in range(num_calls):
        call(peer)
    before = peer._oldest()  # pyright: ignore[reportPrivateUsage]
    header = Header(progress=Progress(first_call_id=first_id)) if is_progress else Header()
    peer._answer(Frame(0, header.SerializeToString(), memoryview(b"")))  # pyright: ignore[reportPrivateUsage]
    after = peer._oldest()  # pyright: ignore[reportPrivateUsage]
    assert (before != after) == (is_progress and first_id <= 1)
    peer.close()
    server.close()
    loop.close()
