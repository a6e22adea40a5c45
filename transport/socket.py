"""Socket transport: `SocketPeer` makes calls over a `Link`; `SocketServer` authenticates and hands on requests."""

import errno
import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from protos.dispatch_pb2 import CallFailure, Header
from transport.address import Address, listen
from transport.base import OnReply, Request, Service
from transport.connection import Connection, Send
from transport.errors import CallError, PeerLost
from transport.frames import EMPTY_BODY, Frame
from transport.handshake import ServerHandshake, allow_all_sizes, handshake_reader
from transport.link import HANDSHAKE_TIMEOUT_S, Link
from transport.loop import READ, Loop, Timer
from transport.tensors import answer_header, degraded_header, read_answer, read_call, rows_to_body

logger = logging.getLogger(__name__)

# What `accept` fails with while this process or its host has no room for one more connection.
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
FULL_PAUSE_S = 0.2  # until it is tried again: who waits stays ready, and would keep the loop turning


class SocketPeer:
    """Calls to one address. A lost connection fails the calls under way with PeerLost and is made anew.

    Args:
        on_change: Called whenever `ready` may have changed.
    """

    def __init__(
        self, loop: Loop, address: Address, key: bytes, role: str, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._calls: dict[int, tuple[OnReply, int, bool]] = {}
        self._next_id = 1
        self._on_change = on_change
        self.rows_in_flight = 0
        self._link = Link(loop, address, key, role, self._answer, on_change, self._down)

    @property
    def address(self) -> Address:
        return self._link.address

    @property
    def ready(self) -> bool:
        return self._link.up

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        if not self._link.up:
            on_reply(PeerLost(f"{self.address} is not connected: {self._link.last_error}", with_rows=False))
            return
        call_id = self._next_id
        self._next_id = call_id + 1
        num_rows = rows_TD.size(0)
        self.rows_in_flight += num_rows
        sent = self._link.send(header, rows_to_body(rows_TD), call_id)
        self._calls[call_id] = on_reply, num_rows, sent

    def close(self) -> None:
        self._link.close()
        self._fail_calls("the peer was removed", by_itself=False)

    def _answer(self, frame: Frame) -> None:
        call_id, encoded, body = frame
        call = self._calls.get(call_id)
        if call is None:
            return
        answer = read_answer(encoded, body)  # a header that does not parse ends the connection and fails this call too
        del self._calls[call_id]
        on_reply, num_rows, _ = call
        self.rows_in_flight -= num_rows
        on_reply(answer)

    def _down(self, reason: str) -> None:
        self._fail_calls(reason)
        self._on_change()

    def _fail_calls(self, reason: str, by_itself: bool = True) -> None:
        calls, self._calls = self._calls, {}
        self.rows_in_flight = 0
        for on_reply, _, sent in calls.values():
            on_reply(PeerLost(f"{self.address}: {reason}", with_rows=by_itself and sent))


class Session:
    """The accepted side of one connection."""

    def __init__(self, server: "SocketServer", loop: Loop, sock: socket.socket, key: bytes) -> None:
        self._server = server
        self._handshake = ServerHandshake(key)
        self._reader = handshake_reader()
        self._timer = loop.call_later(HANDSHAKE_TIMEOUT_S, self.close)
        self._connection = Connection(loop, sock, self._frame, self._closed, self._reader)
        self.send: Send = self._connection.send
        """Sends one message; does nothing once the connection is closed."""

    @property
    def role(self) -> str:
        """What the other side says it is."""
        return self._handshake.role

    @property
    def outbox_bytes(self) -> int:
        """Bytes sent that the other side has not taken yet."""
        return self._connection.outbox_bytes

    def close(self) -> None:
        """Ends the connection."""
        self._timer.cancel()
        self._connection.close()
        self._server.forget(self)

    def _frame(self, frame: Frame) -> None:
        answer = self._handshake.receive(frame.header)
        if answer is not None:
            self._connection.send(answer)
        else:
            self._timer.cancel()
            allow_all_sizes(self._reader)
            self._server.admit(self)
            self._connection.on_frame = functools.partial(self._server.on_frame, self)

    def _closed(self, reason: str) -> None:
        self._timer.cancel()
        logger.info("a connection from %s ended: %s", self.role or "an unknown peer", reason)
        self._server.forget(self)
        if self._handshake.done:
            self._server.on_lost(self)


class _Listener:
    def __init__(self, loop: Loop, sock: socket.socket, accept: Callable[[socket.socket], None]) -> None:
        self._loop = loop
        self._socket = sock
        self._accept = accept
        self._retry: Timer | None = None
        self._said = False
        sock.setblocking(False)
        loop.watch(self, READ)

    def fileno(self) -> int:
        return self._socket.fileno()

    def on_ready(self, events: int) -> None:
        del events
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in FULL:
                self._pause(error)
            return  # else the client gave up before it was accepted
        self._said = False
        self._accept(sock)

    def _pause(self, error: OSError) -> None:
        if not self._said:
            logger.warning("no connection can be accepted (%s); tried again until one can", error)
        self._said = True
        self._loop.unwatch(self)
        self._retry = self._loop.call_later(FULL_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._retry = None
        self._loop.watch(self, READ)

    def close(self) -> None:
        if self._retry is None:
            self._loop.unwatch(self)
        else:
            self._retry.cancel()
        self._socket.close()


class SocketServer:
    """Listens on a Unix socket and, if asked, on TCP; gives each authenticated frame to `on_frame`.

    Args:
        tcp_host: The interface for other hosts; None listens on the Unix socket only.
    """

    def __init__(
        self,
        loop: Loop,
        role: str,
        key: bytes,
        tcp_host: str | None,
        on_frame: Callable[[Session, Frame], None],
        on_lost: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.on_frame = on_frame
        self.on_lost = on_lost
        self._sessions: set[Session] = set()
        self._admitted: set[Session] = set()
        self.address, sockets = listen(role, tcp_host)
        self._listeners = [
            _Listener(loop, sock, lambda accepted: self._sessions.add(Session(self, loop, accepted, key)))
            for sock in sockets
        ]

    @property
    def admitted(self) -> list[Session]:
        """The connections whose other side has proved that it knows the key."""
        return list(self._admitted)

    @property
    def num_admitted(self) -> int:
        """How many they are; readable from any thread."""
        return len(self._admitted)

    def admit(self, session: Session) -> None:
        """Notes that a session is authenticated."""
        self._admitted.add(session)

    def forget(self, session: Session) -> None:
        """Drops a session that has ended."""
        self._sessions.discard(session)
        self._admitted.discard(session)

    def close(self) -> None:
        """Stops listening and ends every connection."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for session in list(self._sessions):
            session.close()
        Path(self.address.unix_path).unlink(missing_ok=True)


class _SessionResponder:
    """Answers one call over the connection it came from; a connection lost meanwhile drops the answer."""

    __slots__ = ("_call_id", "_session")

    def __init__(self, session: Session, call_id: int) -> None:
        self._session = session
        self._call_id = call_id

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None:
        header = degraded_header(rows_TD, missing_experts) if missing_experts else answer_header(rows_TD)
        self._session.send(header, rows_to_body(rows_TD), self._call_id)

    def fail(self, error: CallError) -> None:
        failure = CallFailure(code=error.code, message=error.message)
        self._session.send(Header(failure=failure), EMPTY_BODY, self._call_id)


class RequestServer:
    """A `SocketServer` for a `Service`: collects what has arrived in one turn of the loop and hands it on together."""

    def __init__(self, loop: Loop, role: str, key: bytes, tcp_host: str | None, service: Service) -> None:
        self._loop = loop
        self._service = service
        self._arrived: list[Request] = []
        self._server = SocketServer(loop, role, key, tcp_host, self._collect)

    @property
    def address(self) -> Address:
        return self._server.address

    @property
    def num_callers(self) -> int:
        """Authenticated connections; readable from any thread."""
        return self._server.num_admitted

    def close(self) -> None:
        """Stops listening and ends every connection."""
        self._server.close()

    def _collect(self, session: Session, frame: Frame) -> None:
        call_id, encoded, body = frame
        responder = _SessionResponder(session, call_id)
        try:
            header, rows_TD = read_call(encoded, body)
        except CallError as error:
            responder.fail(error)
            return
        if not self._arrived:
            self._loop.call_soon(self._serve)
        self._arrived.append(Request(header, rows_TD, responder))

    def _serve(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._service(arrived)
