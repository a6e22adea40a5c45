"""What uvicorn does not bound, in the process where HTTP enters: heads that never end, and clients that never read.

uvicorn gives a connection all the time, and all the memory, that it wants for the head of a request, and keeps what a
client does not read for as long as that stays connected. Ray Serve's proxy is a uvicorn which leaves no other place to
say so than the protocol class. `install` is called there by name, through RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import os
import socket
from typing import Any

from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = "MANTA_HTTP_HEAD_TIMEOUT_S"  # environment variables: the proxy serves all services of a cluster
SEND_TIMEOUT_S = "MANTA_HTTP_SEND_TIMEOUT_S"
DEFAULTS_S = {HEAD_TIMEOUT_S: 10.0, SEND_TIMEOUT_S: 120.0}


def setting_s(name: str) -> float:
    """A time-out in seconds, from the environment or its default. Raises ValueError for what is no positive number."""
    given = os.environ.get(name)
    value = DEFAULTS_S[name] if given is None else float(given)
    if not value > 0:
        raise ValueError(f"{name} is {given!r}: it must be a number of seconds above 0")
    return value


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, for as long as the client keeps to two time-outs and one size.

    A request's head must be complete `HEAD_TIMEOUT_S` after the connection was made, or after its first byte on one
    that is kept alive, and have at most MAX_HEAD_BYTES, about. What comes while an answer is under way, such as the
    line end that some clients send after a body, does not hurry it. What is sent must be taken: the kernel gives up a
    connection on which the client has taken nothing for `SEND_TIMEOUT_S`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timeout_s = setting_s(HEAD_TIMEOUT_S)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True  # or before the next one
        self._num_head_bytes = 0
        self._num_heads = 0  # that were complete

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = round(1000 * setting_s(SEND_TIMEOUT_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        before = (self._in_head, self._num_heads)
        super().data_received(data)
        if before == (True, self._num_heads) and self._in_head:  # nothing but a part of a head
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        self._num_heads += 1
        self._forget_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser, once the body is complete too."""
        self._in_head = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._in_head = False
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        answers = self._num_heads > 0 and not self.cycle.response_complete  # then uvicorn keeps it alive for a while
        if self._head_timer is None and not answers and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._head_timeout_s, self.transport.abort)

    def _forget_head(self) -> None:
        self._num_head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def install() -> list[Any]:
    """Makes uvicorn servers of this process, from now on, use GuardedProtocol. Returns the middlewares to add: none.

    Raises:
        ValueError: A time-out in the environment is no positive number.
    """
    for name in DEFAULTS_S:
        setting_s(name)
    uvicorn_config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
    return []
