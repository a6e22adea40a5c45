"""The event loop: timers, callbacks from other threads, and its place inside asyncio's loop."""

import asyncio
import socket
import threading
import time

import pytest

import transport.loop
from tests.transport.driving import CREDENTIALS, connected, echo, expert_rows, random_rows, turn_until
from transport.loop import READ, Loop
from transport.socket import RequestServer


def test_timers_run_in_the_order_in_which_they_are_due(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0.03, lambda: ran.append("late"))
    loop.call_later(0.01, lambda: ran.append("early"))
    cancelled = loop.call_later(0.02, lambda: ran.append("never"))
    cancelled.cancel()
    turn_until(lambda: len(ran) == 2, loop)
    assert ran == ["early", "late"]


def test_a_timer_is_not_early(loop: Loop) -> None:
    started_s, ran = time.monotonic(), []
    loop.call_later(0.05, lambda: ran.append(time.monotonic()))
    turn_until(lambda: bool(ran), loop)
    assert ran[0] - started_s >= 0.05


def test_a_turn_waits_no_longer_than_it_is_told(loop: Loop) -> None:
    loop.call_later(60.0, lambda: None)
    started_s = time.monotonic()
    loop.run_once(0.01)
    assert time.monotonic() - started_s < 5.0


def test_cancelled_timers_are_dropped_before_they_are_due(loop: Loop) -> None:
    for _ in range(3):
        loop.call_later(3600.0, lambda: None).cancel()
    lasting = loop.call_later(3600.0, lambda: None)
    assert [timer for _, _, timer in loop._timers] == [lasting]  # pyright: ignore[reportPrivateUsage]


def test_a_timer_that_comes_before_the_others_is_not_late(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(3600.0, lambda: ran.append("late"))
    loop.call_later(0.01, lambda: loop.call_later(0.01, lambda: ran.append("from a timer")))
    turn_until(lambda: bool(ran), loop, timeout_s=20.0)
    assert ran == ["from a timer"]


def test_a_timer_whose_callback_fails_holds_up_no_other(loop: Loop) -> None:
    ran: list[int] = []
    loop.call_later(0.0, lambda: {}["missing"])
    loop.call_later(0.0, lambda: ran.append(1))
    with pytest.raises(KeyError):
        turn_until(lambda: False, loop)
    turn_until(lambda: bool(ran), loop, timeout_s=20.0)


def test_a_turn_asks_for_no_time_until_a_timer_is_due(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each link has a timer that is due in a while, and each message costs a turn."""
    loop.call_later(3600.0, lambda: None)
    asked: list[float] = []
    monkeypatch.setattr(transport.loop.time, "monotonic", lambda: asked.append(0.0) or 0.0)
    for _ in range(10):
        loop.run_once(0.0)
    assert asked == []


def test_what_is_posted_by_what_was_posted_comes_after_what_is_ready(loop: Loop) -> None:
    inside, outside = socket.socketpair()
    events: list[str] = []

    class Reader:
        def fileno(self) -> int:
            return inside.fileno()

        def on_ready(self, events_: int) -> None:
            del events_
            events.append(f"read {inside.recv(1)!r}")

    def post_again() -> None:
        events.append("posted")
        if events.count("posted") < 5:
            outside.send(b"x")
            loop.post(post_again)

    loop.watch(Reader(), READ)
    loop.post(post_again)
    turn_until(lambda: events.count("posted") == 5, loop)
    assert events == ["posted", *["read b'x'", "posted"] * 4]
    loop.unwatch(Reader())
    for end in (inside, outside):
        end.close()


def test_callbacks_of_other_threads_run_in_the_loops_thread(loop: Loop) -> None:
    threads: list[int] = []

    def post_many() -> None:
        for _ in range(1000):
            loop.post(lambda: threads.append(threading.get_ident()))

    posters = [threading.Thread(target=post_many) for _ in range(4)]
    for poster in posters:
        poster.start()
    turn_until(lambda: len(threads) == 4000, loop)
    for poster in posters:
        poster.join()
    assert set(threads) == {threading.get_ident()}


def test_stop_ends_a_loop_that_waits(loop: Loop) -> None:
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    loop.stop()
    thread.join(10.0)
    assert not thread.is_alive()


def test_a_callback_asked_for_between_two_turns_does_not_wait_for_a_message(loop: Loop) -> None:
    ran: list[int] = []
    loop.run_once(0.0)
    loop.call_soon(lambda: ran.append(1))
    started_s = time.monotonic()
    loop.run_once(20.0)
    assert ran == [1]
    assert time.monotonic() - started_s < 5.0


class _Closing:
    """Closes the other one as soon as it is ready: whichever comes second must not be called."""

    def __init__(self, loop: Loop) -> None:
        self.inside, self.outside = socket.socketpair()
        self.other: _Closing | None = None
        self.calls = 0
        self._loop = loop
        loop.watch(self, READ)

    def fileno(self) -> int:
        return self.inside.fileno()

    def on_ready(self, events: int) -> None:
        assert events & READ
        self.calls += 1
        self.inside.recv(1)
        if self.other is not None:
            self._loop.unwatch(self.other)
            self.other.inside.close()
            self.other.other = None


def test_what_was_closed_in_the_same_turn_is_not_called(loop: Loop) -> None:
    first, second = _Closing(loop), _Closing(loop)
    first.other, second.other = second, first
    first.outside.send(b"x")
    second.outside.send(b"x")
    loop.run_once(1.0)
    assert first.calls + second.calls == 1
    for closing in (first, second):
        closing.outside.close()
        closing.inside.close()


def test_asyncio_turns_the_loop_through_its_descriptor(loop: Loop, seed: int) -> None:
    """As the gateway does it: everything in one asyncio thread, no polling."""
    server_loop = Loop()
    server = RequestServer(server_loop, "echo", CREDENTIALS, None, echo)
    serving = threading.Thread(target=server_loop.run_forever)
    serving.start()
    peer = connected(loop, server.address)
    rows_TD = random_rows(4, 8, seed)

    async def call() -> object:
        running = asyncio.get_running_loop()
        answer: asyncio.Future[object] = running.create_future()
        running.add_reader(loop.fileno(), lambda: loop.run_once(0.0))
        posted = asyncio.Event()
        threading.Thread(target=lambda: loop.post(posted.set)).start()
        await asyncio.wait_for(posted.wait(), 20.0)
        rang = asyncio.Event()
        loop.call_later(0.01, rang.set)
        await asyncio.wait_for(rang.wait(), 20.0)
        peer.call(expert_rows(rows_TD), rows_TD, answer.set_result)
        try:
            return await asyncio.wait_for(answer, 20.0)
        finally:
            running.remove_reader(loop.fileno())

    answer = asyncio.run(call())
    peer.close()
    server_loop.stop()
    serving.join()
    server.close()
    server_loop.close()
    assert str(answer) == str(rows_TD)
