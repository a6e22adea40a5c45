"""Where an answer leaves the gateway: what a client that does not read may hold, and for how long.

An ASGI server either makes `send` wait while the client does not read (uvicorn), or takes every message at once and
keeps it (Ray Serve, which reads ahead for its proxy). So the messages are counted that the server still holds: each
tells when it is let go of.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, cast

from starlette.types import Message, Send

from serving.settings import READ_AHEAD_BYTES

PIECE_BYTES = 256 << 10  # of one message, about
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
    """Sends one answer.

    Args:
        timeout_s: `limits.request.delivery_timeout_s`, for each MiB that the server holds.
        max_bytes: `limits.request.max_unread_bytes`; LEAST_UNREAD_BYTES or more.
    """

    def __init__(self, send: Send, timeout_s: float, max_bytes: int) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._moved_s = time.monotonic()  # when the server took something last that it could hand on
        self.held_bytes = 0  # sent, and not let go of by the server

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
        self._check()
        if not self.held_bytes:
            self._moved_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(cast("Message", _Counted(message, self, num_bytes)))
        except TimeoutError:
            raise self._stalled() from None

    async def _wait_for_room(self) -> None:
        while self.held_bytes > READ_AHEAD_BYTES:
            self._check()
            await asyncio.sleep(LOOK_S)

    def _check(self) -> None:
        if self.held_bytes > self._max_bytes:
            limit = f"{self._max_bytes} bytes (limits.request.max_unread_bytes)"
            raise ClientStalled(f"the client left more than {limit} unread")
        # A server may let go of many messages at once, when all of them have been taken.
        patience_s = self._timeout_s * max(1.0, self.held_bytes / READ_AHEAD_BYTES)
        if self.held_bytes and time.monotonic() - self._moved_s > patience_s:
            raise self._stalled()

    def _stalled(self) -> ClientStalled:
        limit = f"{self._timeout_s:g} s (limits.request.delivery_timeout_s)"
        return ClientStalled(f"the client read nothing for {limit}")
