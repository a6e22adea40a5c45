"""A small event loop over epoll: one thread owns its sockets, timers and callbacks.

A process that computes between messages (a node's engine, an expert) calls `run_once` itself; a router calls
`run_forever`; a gateway hangs the whole loop into asyncio through `fileno`, since an epoll descriptor can itself be polled.
"""

import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Pollable(Protocol):
    """Something with a descriptor that the loop watches."""

    def fileno(self) -> int: ...

    def on_ready(self, events: int) -> None:
        """Called in the loop's thread with READ, WRITE or both."""
        ...


class Timer:
    """A callback due at `due_s` (monotonic clock); `cancel` makes it do nothing."""

    __slots__ = ("callback", "due_s")

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s = due_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Waker:
    """Lets another thread interrupt the wait: a byte through a socket pair."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)

    def fileno(self) -> int:
        return self._inside.fileno()

    def on_ready(self, events: int) -> None:
        del events
        try:
            while self._inside.recv(4096):
                pass
        except BlockingIOError:
            return

    def wake(self) -> None:
        try:
            self._outside.send(b"\0")
        except BlockingIOError:
            return  # it is already full of wake-ups

    def close(self) -> None:
        self._inside.close()
        self._outside.close()


class Loop:
    """Watches descriptors and timers. Only `post` and `stop` may be called from other threads."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._soon: deque[Callable[[], None]] = deque()
        self._waker = _Waker()
        self._stopped = threading.Event()
        self.watch(self._waker, READ)

    def fileno(self) -> int:
        """The descriptor that becomes readable when anything watched is ready."""
        return self._selector.fileno()

    def watch(self, pollable: Pollable, events: int) -> None:
        """Starts (or changes) watching a descriptor."""
        try:
            self._selector.modify(pollable.fileno(), events, pollable)
        except KeyError:
            self._selector.register(pollable.fileno(), events, pollable)

    def unwatch(self, pollable: Pollable) -> None:
        """Stops watching; to be called before the descriptor is closed."""
        self._selector.unregister(pollable.fileno())

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Runs `callback` in this loop's thread after `delay_s` seconds."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due_s, next(self._sequence), timer))
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs `callback` at the end of the present turn, after everything that is ready has been read."""
        self._soon.append(callback)

    def post(self, callback: Callable[[], None]) -> None:
        """Runs `callback` in this loop's thread; callable from any thread."""
        self._posted.append(callback)
        self._waker.wake()

    def stop(self) -> None:
        """Ends `run_forever`; callable from any thread."""
        self._stopped.set()
        self._waker.wake()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def next_due_s(self) -> float | None:
        """Seconds until the next timer, or None."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def run_once(self, timeout_s: float | None = None) -> None:
        """One turn: waits for at most `timeout_s` (None: until something happens), then runs what is due."""
        due_s = self.next_due_s() if not self._posted else 0.0
        if due_s is not None:
            timeout_s = due_s if timeout_s is None else min(due_s, timeout_s)
        for key, events in self._selector.select(timeout_s):
            key.data.on_ready(events)
        self._run_posted()
        self._run_timers()
        while self._soon:
            self._soon.popleft()()

    def _run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()

    def run_forever(self) -> None:
        """Turns until `stop`."""
        while not self.stopped:
            self.run_once()

    def close(self) -> None:
        """Frees the loop's own descriptors."""
        self.unwatch(self._waker)
        self._waker.close()
        self._selector.close()
