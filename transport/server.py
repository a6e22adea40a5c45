"""The accepting side: `SocketServer` lets in who proves itself, and hands on what it says."""

import functools
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from transport.address import listen
from transport.connection import NO_LIMIT, Connection, Send
from transport.credentials import Credentials
from transport.frames import Frame
from transport.handshake import PROOF_LOOKS, PROOF_TIMEOUT_S, ServerHandshake, handshake_reader
from transport.listener import Listener
from transport.loop import READ, Loop
from transport.sealing import Opener, Sealer

logger = logging.getLogger(__name__)


class Session:
    """The accepted side of one connection."""

    def __init__(self, server: "SocketServer", listener: Listener, sock: socket.socket) -> None:
        self._server = server
        self._listener = listener
        tls = server.credentials.tls if sock.family != socket.AF_UNIX else None
        self._tls = tls is not None
        self._handshake = ServerHandshake(server.credentials, tls.certificate if tls else b"")
        self._looks_left = PROOF_LOOKS
        self._timer = server.loop.call_later(PROOF_TIMEOUT_S / PROOF_LOOKS, self._look)
        self._connection = Connection(
            server.loop,
            tls.accept(sock) if tls else sock,
            self._frame,
            self._closed,
            handshake_reader(),
            server.max_untaken_bytes,
        )
        self.send: Send = self._connection.send
        """Sends one message; does nothing once the connection is closed."""
        self.pause = self._connection.pause
        """Reads no more from the other side until `resume`."""
        self.resume = self._connection.resume

    @property
    def role(self) -> str:
        """What the other side has proved to be: one of `handshake.ROLES`."""
        return self._handshake.role

    @property
    def key(self) -> bytes:
        """The key that the other side has proved."""
        return self._handshake.key

    @property
    def outbox_bytes(self) -> int:
        """Bytes sent that the other side has not taken yet."""
        return self._connection.outbox_bytes

    def close(self) -> None:
        """Ends the connection."""
        self._timer.cancel()
        self._connection.close()
        self._listener.settle(self)
        self._server.forget(self)

    def dismiss(self, reason: str) -> None:
        """Ends the connection of who has not proved itself; see `listener.Accepted`."""
        logger.info("a connection that has not proved itself ends: %s", reason)
        self.close()

    def read(self) -> None:
        """Reads what has come already: a process that computes between its turns would answer only after the next.

        Not over TLS, of which nothing is held before something has come.
        """
        if not self._tls:
            self._connection.on_ready(READ)

    def lose(self, reason: str) -> None:
        """Ends the connection as if it had broken: whoever serves it is told."""
        self._connection.fail(reason)

    def _frame(self, frame: Frame) -> None:
        answer = self._handshake.receive(frame.header)
        if answer is not None:
            self._connection.send(answer)
            return
        self._timer.cancel()
        self._listener.settle(self)
        if self._connection.to_be_sealed:
            keys = self._handshake.seal_keys()
            self._connection.admit(Sealer(keys.to_client), Opener(keys.to_server))
        else:
            self._connection.admit(None, None)
        self._server.admit(self)
        self._connection.on_frame = functools.partial(self._server.on_frame, self)

    def _look(self) -> None:
        """Looks again and again whether the other side takes too long to prove itself."""
        self._looks_left -= 1
        if self._looks_left:
            self._timer = self._server.loop.call_later(PROOF_TIMEOUT_S / PROOF_LOOKS, self._look)
        else:
            self.dismiss(f"{PROOF_TIMEOUT_S:g} s have passed")

    def _closed(self, reason: str) -> None:
        self._timer.cancel()
        self._listener.settle(self)
        self._server.forget(self)
        if self._handshake.done:
            logger.info("a connection from a %s ended: %s", self.role, reason)
            self._server.on_lost(self)
        else:
            logger.info("a connection that has not proved itself ended: %s", reason)


class SocketServer:
    """Listens on a Unix socket and, if asked, on TCP; gives each frame of a proven session to `on_frame`.

    Args:
        role: What this process is; for the name of its Unix socket.
        tcp_host: The interface for other hosts; None listens on the Unix socket only.
        on_lost: Called when a proven session has ended by itself.
        max_untaken_bytes: A session of which more waits to be taken is not read from meanwhile.
    """

    def __init__(
        self,
        loop: Loop,
        role: str,
        credentials: Credentials,
        tcp_host: str | None,
        on_frame: Callable[[Session, Frame], None],
        on_lost: Callable[[Session], None] = lambda session: None,
        max_untaken_bytes: int = NO_LIMIT,
    ) -> None:
        self.on_frame = on_frame
        self.on_lost = on_lost
        self.loop = loop
        self.credentials = credentials
        self.max_untaken_bytes = max_untaken_bytes
        self._sessions: set[Session] = set()
        self._admitted: set[Session] = set()
        self.address, sockets = listen(role, tcp_host)
        self._listeners = [Listener(loop, sock, self._accept) for sock in sockets]
        self._forget_credentials = credentials.on_change(lambda: loop.post(self._end_revoked))

    def _accept(self, listener: Listener, sock: socket.socket) -> Session:
        session = Session(self, listener, sock)
        self._sessions.add(session)
        session.read()
        return session

    @property
    def admitted(self) -> list[Session]:
        """The connections whose other side has proved that it knows a key."""
        return list(self._admitted)

    @property
    def num_admitted(self) -> int:
        """How many they are; readable from any thread."""
        return len(self._admitted)

    @property
    def num_unproven(self) -> int:
        """Connections that have not proved themselves."""
        return sum(listener.num_unproven for listener in self._listeners)

    def admit(self, session: Session) -> None:
        """Notes that a session is authenticated."""
        self._admitted.add(session)

    def forget(self, session: Session) -> None:
        """Drops a session that has ended."""
        self._sessions.discard(session)
        self._admitted.discard(session)

    def close(self) -> None:
        """Stops listening and ends every connection."""
        self._forget_credentials()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for session in list(self._sessions):
            session.close()
        Path(self.address.unix_path).unlink(missing_ok=True)

    def _end_revoked(self) -> None:
        for session in self.admitted:
            if not self.credentials.accepts(session.key):
                session.lose("its key is not the service's any more")
