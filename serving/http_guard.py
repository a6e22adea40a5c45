"""What uvicorn does not bound where HTTP enters: heads that never end, clients that never read, connections.

uvicorn gives a connection all the time, and all the memory, that it wants for the head of a request, for its trailers
and for requests that come before the answers to others, and keeps what a client does not read for as long as that
stays connected. Of several requests it tells only the last that the client has left. Of one that offers to go on in
another protocol (`Upgrade: h2c`, as Java's client does) it loses the body. Ray Serve's proxy is a uvicorn which leaves
no other place to say so than the protocol class. `install` is called there by name, through
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import os
import resource
import socket
import sys
from typing import Any

import httptools
from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
MAX_PIPELINED = 16  # requests of one connection that wait for the answers to others: hardly any client sends one
HEAD_TIMEOUT_S = "MANTA_HTTP_HEAD_TIMEOUT_S"  # environment variables: the proxy serves all services of a cluster
SEND_TIMEOUT_S = "MANTA_HTTP_SEND_TIMEOUT_S"
MAX_CONNECTIONS = "MANTA_HTTP_MAX_CONNECTIONS"
DEFAULTS_S = {HEAD_TIMEOUT_S: 10.0, SEND_TIMEOUT_S: 120.0}
DEFAULT_MAX_CONNECTIONS = 4096
KEPT_DESCRIPTORS = 256  # for what else a proxy opens: without one left it could not even refuse a connection
_BUSY = b"Too many connections (MANTA_HTTP_MAX_CONNECTIONS): try again later.\n"
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BUSY), _BUSY)
)


def setting_s(name: str) -> float:
    """A time-out in seconds, from the environment or its default. Raises ValueError for what is no positive number."""
    given = os.environ.get(name)
    value = DEFAULTS_S[name] if given is None else float(given)
    if not value > 0:
        raise ValueError(f"{name} is {given!r}: it must be a number of seconds above 0")
    return value


def max_connections() -> int:
    """How many connections a server of this process keeps: as the environment says, but fewer than its descriptors.

    Raises:
        ValueError: The environment says what is no whole number above 0.
    """
    given = os.environ.get(MAX_CONNECTIONS)
    if given is not None and not (given.isascii() and given.isdigit() and int(given[:18]) > 0):
        raise ValueError(f"{MAX_CONNECTIONS} is {given!r}: it must be a whole number above 0")
    wanted = DEFAULT_MAX_CONNECTIONS if given is None else int(given[:18])
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = wanted if descriptors == resource.RLIM_INFINITY else descriptors - KEPT_DESCRIPTORS
    return max(1, min(wanted, room))


class NotServed(Exception):
    """A head that ends what its connection may say: CONNECT (this is no proxy), or one beyond MAX_PIPELINED."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, for as long as the client keeps to two time-outs and two limits, and there are not too many.

    A request's head must be complete `HEAD_TIMEOUT_S` after the connection was made, or after its first byte on one
    that is kept alive, and have at most MAX_HEAD_BYTES, about; so much may trailers have, and what is said of a chunk.
    What comes while an answer is under way, such as the line end that some clients send after a body, does not hurry
    it; what is still missing of a body when its request has been answered has `HEAD_TIMEOUT_S` left, and so has the
    next head after it. What is sent must be taken: the kernel gives up a connection on which the client has taken
    nothing for `SEND_TIMEOUT_S`. A connection beyond `max_connections` is answered 503 and closed before anything is
    read of it; those that are there go on.

    An offer to go on in another protocol than HTTP/1.1 or WebSocket is not taken up (RFC 9110, section 7.8).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timeout_s = setting_s(HEAD_TIMEOUT_S)
        self._max_connections = max_connections()
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True  # or before the next one
        self._num_head_bytes = 0
        self._num_heads = 0  # that were complete
        self._num_parts = 0  # heads, pieces of bodies and messages that were complete
        self._fed = b""
        self._cycles: list[RequestResponseCycle] = []  # one for each request that is not answered yet

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.write(REFUSAL)
            transport.close()
            return
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = round(1000 * setting_s(SEND_TIMEOUT_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        in_head, num_parts = self._in_head, self._num_parts
        self._feed(data)
        self._fed = b""
        if num_parts != self._num_parts:
            self._num_head_bytes = 0
            return
        self._num_head_bytes += len(data)  # nothing but a part of a head, of trailers, or of what is said of a chunk
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()
        if in_head:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Called by the parser, whose work an exception ends."""
        if self.parser.get_method() == b"CONNECT":
            raise NotServed
        if self._declines_upgrade():
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise NotServed
        self._in_head = False
        self._num_heads += 1
        self._num_parts += 1
        self._forget_head()
        super().on_headers_complete()
        self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if cycle and not cycle.response_complete]

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._num_parts += 1

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._num_parts += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser, once the body is complete too."""
        if self._declines_upgrade():
            return
        self._in_head = True
        self._num_parts += 1
        self._forget_head()
        super().on_message_complete()
        if not self.parser.should_upgrade() and self.cycle.response_complete:
            self._start_timer()  # the rest of a body has ended uvicorn's own, that of connections kept alive

    def on_response_complete(self) -> None:
        """Called by uvicorn, once an answer is complete."""
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn where the parser has failed."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._in_head = False
        self._forget_head()
        super().connection_lost(exc)
        for cycle in self._cycles:  # uvicorn tells the one that came last
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        self._cycles.clear()
        self.pipeline.clear()

    def _expect_head(self) -> None:
        answers = self._num_heads > 0 and not self.cycle.response_complete  # then uvicorn keeps it alive for a while
        if not answers:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._head_timeout_s, self.transport.abort)

    def _forget_head(self) -> None:
        self._num_head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _feed(self, data: bytes) -> None:
        self._fed = data
        super().data_received(data)

    def _declines_upgrade(self) -> bool:
        """Whether the request that is parsed offers another protocol, which nobody speaks here."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _should_upgrade(self) -> bool:
        """Whether the connection becomes a WebSocket: not while an answer is due, which nobody would end any more."""
        return super()._should_upgrade() and all(cycle.response_complete for cycle in self._cycles)

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn while it handles the parser's HttpParserUpgrade, which says where the head ends.

        The parser takes what follows for the other protocol: the request is parsed anew, without the offer.
        """
        declined = sys.exc_info()[1]
        assert isinstance(declined, httptools.HttpParserUpgrade)
        rest = self._fed[declined.args[0] :]
        kept = (name + b": " + value for name, value in self.headers if name != b"upgrade")
        version = b"HTTP/" + self.parser.get_http_version().encode()
        first_line = b" ".join((self.parser.get_method(), self.url, version))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._feed(b"\r\n".join((first_line, *kept, b"", rest)))


def install() -> list[Any]:
    """Makes uvicorn servers of this process, from now on, use GuardedProtocol. Returns the middlewares to add: none.

    Raises:
        ValueError: A time-out or a limit in the environment is no positive number.
    """
    for name in DEFAULTS_S:
        setting_s(name)
    max_connections()
    uvicorn_config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
    return []
