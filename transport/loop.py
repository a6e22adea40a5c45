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

from transport.alarm import Alarm

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLRDHUP  # for who does not read: over TCP, a peer that has left is not noticed otherwise
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
        self._alarm = Alarm()  # of the first timer
        self.watch(self._waker, READ)
        self.watch(self._alarm, READ)

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
        self._drop_cancelled()
        heapq.heappush(self._timers, (timer.due_s, next(self._sequence), timer))
        if self._timers[0][2] is timer:
            self._alarm.set(timer.due_s)
        return timer

    def _drop_cancelled(self) -> None:
        """Drops cancelled timers that are next: most time-outs are cancelled long before they are due."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Runs `callback` at the end of the present turn, after everything that is ready has been read."""
        self._soon.append(callback)
        if not self._turning:  # whoever waits on `fileno` would not learn of it by itself
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

    def run_once(self, timeout_s: float | None = None) -> None:
        """One turn: waits for at most `timeout_s` (None: until something happens), then runs what is due."""
        self._turning = True
        try:
            for descriptor, events in self._epoll.poll(timeout_s, MAX_EVENTS_PER_TURN):
                on_ready = self._on_ready.get(descriptor)
                if on_ready is not None:  # else it has been closed in this very turn
                    on_ready(events)
            if self._posted:
                self._run_posted()
            if self._alarm.rang:
                self._run_timers()
            while self._soon:
                self._soon.popleft()()
        finally:
            self._turning = False

    def _run_posted(self) -> None:
        """Runs what has been posted by now: what that posts itself comes after whatever will be ready then."""
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def _run_timers(self) -> None:
        self._alarm.rang = False
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                callback()
        self._drop_cancelled()
        self._alarm.set(self._timers[0][0] if self._timers else None)

    def run_forever(self) -> None:
        """Turns until `stop`."""
        while not self.stopped:
            self.run_once()

    def close(self) -> None:
        """Frees the loop's own descriptors."""
        for own in (self._waker, self._alarm):
            self.unwatch(own)
            own.close()
        self._epoll.close()
