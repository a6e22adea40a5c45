"""Where an answer leaves the gateway: what a client that does not read may hold, and for how long.

An ASGI server either makes `send` wait while the client does not read (uvicorn), or takes every message at once and
keeps it (Ray Serve, which reads ahead for its proxy). So what the server still holds is counted: now and then there is
a message that tells when it is let go of, and so all before it.

A token of a stream is a message of 200 bytes, which must cost little: one message in MARK_BYTES tells, and one timer an
answer sees to all that is sent.
"""

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, cast

from starlette.types import Message, Send

from serving.settings import READ_AHEAD_BYTES

PIECE_BYTES = 256 << 10  # of one message, about
# Of an answer, after which a message tells when it is let go of. Proxy and kernel take far more of one that nobody
# reads, so that a shorter one is never noticed to be unread, and need not be.
MARK_BYTES = 16 << 10
LOOK_S = 0.05  # between two looks whether it holds less


class ClientStalled(Exception):
    """The client stays connected and does not read what is ready for it; says which limit was reached."""


class _Counted(dict[str, Any]):
    """A message that tells when it goes on its way: when it is pickled (as a plain dictionary), or nobody holds it.

    Serve pickles what has gathered once what was before has been taken, and holds on to it until there is more.
    """

    def __init__(self, message: Message, outlet: "Outlet", num_bytes: int) -> None:
        super().__init__(message)
        self._outlet = outlet
        self._num_bytes = num_bytes
        outlet.held_bytes += num_bytes

    def __del__(self) -> None:
        self._let_go()

    def __reduce__(self) -> tuple[Any, ...]:
        self._let_go()
        return dict, (dict(self),)

    def _let_go(self) -> None:
        num_bytes, self._num_bytes = self._num_bytes, 0
        if num_bytes:
            self._outlet.let_go(num_bytes)


class Outlet:
    """Sends one answer, inside of `async with`, which may end by ClientStalled too.

    Args:
        timeout_s: `limits.request.delivery_timeout_s`, for each MiB that the server holds.
        max_bytes: `limits.request.max_unread_bytes`; LEAST_UNREAD_BYTES or more.
    """

    def __init__(self, send: Send, timeout_s: float, max_bytes: int) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._moved_s = time.monotonic()  # when the server was last seen to take something
        self._unmarked_bytes = 0  # sent since the last message that tells
        self._sending_since_s: float | None = None
        self._patience = asyncio.timeout(None)
        self._look_again: asyncio.TimerHandle | None = None
        self.held_bytes = 0
        """Sent, and not let go of by the server, up to the last message that tells."""

    async def __aenter__(self) -> Self:
        await self._patience.__aenter__()
        self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        try:
            await self._patience.__aexit__(kind, error, trace)
        except TimeoutError:  # it was sent at the last moment, and what followed was ended
            raise self._stalled() from None

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Sends the head. Raises ClientStalled."""
        await self._put({"type": "http.response.start", "status": status, "headers": list(headers)}, 0)

    async def body(self, pieces: Iterable[str], *, more: bool = False) -> None:
        """Sends text, in as many messages as its size asks for; `more`: it is not the end. Raises ClientStalled."""
        waiting: list[str] = []
        size = 0
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                await self._put_text("".join(waiting), more=True)
                await self._wait_for_room()
                waiting, size = [], 0
        if waiting or not more:
            await self._put_text("".join(waiting), more=more)

    def let_go(self, num_bytes: int) -> None:
        """The server holds so much less."""
        self.held_bytes -= num_bytes
        self._moved_s = time.monotonic()

    async def _put_text(self, text: str, *, more: bool) -> None:
        data = text.encode()
        await self._put({"type": "http.response.body", "body": data, "more_body": more}, len(data))

    async def _put(self, message: Message, num_bytes: int) -> None:
        now_s = time.monotonic()
        if self.held_bytes:
            self._check(now_s)
        else:
            self._moved_s = now_s
        self._unmarked_bytes += num_bytes
        if self._unmarked_bytes >= MARK_BYTES:
            message = cast("Message", _Counted(message, self, self._unmarked_bytes))
            self._unmarked_bytes = 0
        self._sending_since_s = now_s
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if self._patience.expired():  # by `_look`; else the client has left, or the request's time is over
                raise self._stalled() from None
            raise
        finally:
            self._sending_since_s = None

    def _look(self) -> None:
        """Ends a send that has waited for too long; else looks again at the earliest time at which one could have."""
        loop = asyncio.get_running_loop()
        if self._sending_since_s is None:
            left_s = max(self._timeout_s, LOOK_S)  # however short the time-out is, looking costs little
        else:
            left_s = self._sending_since_s + self._timeout_s - time.monotonic()
        if left_s > 0:
            self._look_again = loop.call_later(left_s, self._look)
        else:
            self._look_again = None
            self._patience.reschedule(loop.time())

    async def _wait_for_room(self) -> None:
        while self.held_bytes > READ_AHEAD_BYTES:
            self._check(time.monotonic())
            await asyncio.sleep(LOOK_S)

    def _check(self, now_s: float) -> None:
        if self.held_bytes > self._max_bytes:
            limit = f"{self._max_bytes} bytes (limits.request.max_unread_bytes)"
            raise ClientStalled(f"the client left more than {limit} unread")
        # A server may let go of many messages at once, when all of them have been taken.
        patience_s = self._timeout_s * max(1.0, self.held_bytes / READ_AHEAD_BYTES)
        if now_s - self._moved_s > patience_s:
            raise self._stalled()

    def _stalled(self) -> ClientStalled:
        limit = f"{self._timeout_s:g} s (limits.request.delivery_timeout_s)"
        return ClientStalled(f"the client read nothing for {limit}")
