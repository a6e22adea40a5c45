"""A non-blocking stream socket that speaks frames, registered with a `Loop`."""

import socket
from collections import deque
from collections.abc import Callable, Sequence

from protos.dispatch_pb2 import Header
from transport.errors import TransportError
from transport.frames import EMPTY_BODY, Body, Frame, FrameReader, encode_head
from transport.loop import READ, WRITE, Loop

SOCKET_BUFFER_BYTES = 4 << 20
MAX_FRAMES_PER_TURN = 64


class Connection:
    """Sends and receives frames; closes itself on a bad frame or a lost peer.

    Args:
        loop: The loop whose thread owns this connection.
        sock: A connected stream socket; the connection owns it from now on.
        on_frame: Called with each frame.
        on_closed: Called once, with the reason, when the connection ends for any reason but `close`.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[str], None],
        reader: FrameReader | None = None,
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._reader = reader or FrameReader()
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._outbox: deque[memoryview] = deque()
        self.closed = False
        sock.setblocking(False)
        _tune(sock)
        loop.watch(self, READ)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def outbox_bytes(self) -> int:
        """Bytes accepted by `send` that the peer has not taken yet."""
        return sum(len(part) for part in self._outbox)

    def send(self, header: Header, body: Body = EMPTY_BODY) -> None:
        """Sends at once what the socket takes, and the rest when it can. `body` must not change until then.

        Sending on a closed connection does nothing: `on_closed` has told (or will tell) the owner.
        """
        if self.closed:
            return
        parts = [memoryview(encode_head(header, len(body)))]
        if len(body):
            parts.append(memoryview(body))
        if self._outbox:
            self._outbox.extend(parts)
            return
        self._write(parts)
        if self._outbox:
            self._loop.watch(self, READ | WRITE)

    def on_ready(self, events: int) -> None:
        if events & WRITE and not self.closed:
            self._flush()
        if events & READ and not self.closed:
            self._receive()

    def close(self) -> None:
        """Closes without calling `on_closed`."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self)
            self._socket.close()
            self._outbox.clear()

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            # The owner may react by sending elsewhere; let it do so outside of this connection's own calls.
            self._loop.call_soon(lambda: self._on_closed(reason))

    def _write(self, parts: Sequence[memoryview]) -> None:
        try:
            sent = self._socket.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(f"sending failed: {error}")
            return
        for part in parts:
            if sent < len(part):
                self._outbox.append(part[sent:])
            sent = max(0, sent - len(part))

    def _flush(self) -> None:
        waiting = list(self._outbox)[:64]
        rest = list(self._outbox)[64:]
        self._outbox.clear()
        self._write(waiting)
        self._outbox.extend(rest)
        if not self.closed and not self._outbox:
            self._loop.watch(self, READ)

    def _receive(self) -> None:
        for _ in range(MAX_FRAMES_PER_TURN):
            buffer = self._reader.buffer()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(f"receiving failed: {error}")
                return
            if count == 0:
                self._fail("the peer closed the connection")
                return
            self._deliver(count)
            if self.closed or count < len(buffer):
                return  # the socket is drained; if not, the loop says so again

    def _deliver(self, count: int) -> None:
        try:
            for frame in self._reader.advance(count):
                self._on_frame(frame)
                if self.closed:
                    return
        except TransportError as error:
            self._fail(str(error))


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
