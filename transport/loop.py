"""A small event loop over epoll: one thread owns its sockets, timers and callbacks.

A process that computes between messages (a node's engine, an expert) calls `run_once` itself; a router calls
`run_forever`; a gateway hangs the whole loop into asyncio through `fileno`, since an epoll descriptor can itself be
polled.
"""

import heapq
import itertools
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
MAX_EVENTS_PER_TURN = 256


class Pollable(Protocol):
    """Something with a descriptor that the loop watches."""

    def fileno(self) -> int: ...

    def on_ready(self, events: int) -> None:
        """Called in the loop's thread with READ, WRITE or both; or with neither, when the other end has hung up."""
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
        except OSError:
            return  # it is already full of wake-ups, or closed

    def close(self) -> None:
        self._inside.close()
        self._outside.close()


class Loop:
    """Watches descriptors and timers. Only `post` and `stop` may be called from other threads."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._on_ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._soon: deque[Callable[[], None]] = deque()
        self._turning = False
        self._waker = _Waker()
        self._stopped = threading.Event()
        self.watch(self._waker, READ)

    def fileno(self) -> int:
        """The descriptor that becomes readable when anything watched is ready."""
        return self._epoll.fileno()

    def watch(self, pollable: Pollable, events: int) -> None:
        """Starts (or changes) watching a descriptor."""
        descriptor = pollable.fileno()
        if descriptor in self._on_ready:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._on_ready[descriptor] = pollable.on_ready

    def unwatch(self, pollable: Pollable) -> None:
        """Stops watching; to be called before the descriptor is closed."""
        descriptor = pollable.fileno()
        del self._on_ready[descriptor]
        self._epoll.unregister(descriptor)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Runs `callback` in this loop's thread after `delay_s` seconds."""
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.due_s, next(self._sequence), timer))
        if not self._turning:
            self._interrupt()
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs `callback` at the end of the present turn, after everything that is ready has been read."""
        self._soon.append(callback)
        if not self._turning:
            self._interrupt()

    def _interrupt(self) -> None:
        """Between two turns, whoever waits on `fileno` would not learn of a new timer or callback by itself."""
        self._waker.wake()

    def post(self, callback: Callable[[], None]) -> None:
        """Runs `callback` in this loop's thread; callable from any thread.

        Nothing bounds what is posted to a thread that does not turn: that is the control plane's, a few a second
        (tables, pulses, keys), and a thread that hangs costs its process its life within seconds.
        """
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
        if self._timers:
            due_s = max(0.0, self._timers[0][0] - time.monotonic())
            timeout_s = due_s if timeout_s is None else min(due_s, timeout_s)
        self._turning = True
        try:
            for descriptor, events in self._epoll.poll(timeout_s, MAX_EVENTS_PER_TURN):
                on_ready = self._on_ready.get(descriptor)
                if on_ready is not None:  # else it has been closed in this very turn
                    on_ready(events)
            while self._posted:
                self._posted.popleft()()
            if self._timers:
                self._run_timers()
            while self._soon:
                self._soon.popleft()()
        finally:
            self._turning = False

    def _run_timers(self) -> None:
        now = time.monotonic()
        # Cancelled ones go as soon as they are the next: most time-outs are cancelled long before they are due.
        while self._timers and (self._timers[0][0] <= now or self._timers[0][2].callback is None):
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
        self._epoll.close()
