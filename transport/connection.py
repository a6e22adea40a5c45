"""A non-blocking stream socket that speaks frames, registered with a `Loop`."""

import itertools
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from protos.dispatch_pb2 import Header
from transport.errors import TransportError
from transport.frames import EMPTY_BODY, Body, Frame, FrameReader, encode_head
from transport.loop import READ, WRITE, Loop

SOCKET_BUFFER_BYTES = 4 << 20
MAX_RECEIVES_PER_TURN = 64
MAX_PARTS_PER_SEND = 64

# When a host vanishes (nothing is left there to close its sockets), its connections end after about this long. It is
# also how long a live process may leave a full socket unread.
VANISHED_HOST_S = 20


class Send(Protocol):
    """`Connection.send`."""

    def __call__(self, header: Header, body: Body = EMPTY_BODY, call_id: int = 0) -> bool: ...


class Connection:
    """Sends and receives frames; closes itself on a bad frame or a lost peer.

    Args:
        loop: The loop whose thread owns this connection.
        sock: A connected stream socket (or one that is connecting); the connection owns it from now on.
        on_frame: Called with each frame; may be replaced.
        on_closed: Called once, with the reason, when the connection ends for any reason but `close`.
        reader: Cuts what is received into frames, and limits their sizes.
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
        self.on_frame = on_frame
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
        return sum(map(len, self._outbox))

    def send(self, header: Header, body: Body = EMPTY_BODY, call_id: int = 0) -> bool:
        """Sends at once what the socket takes, and the rest when it can. `body` must not change until then.

        Sending on a closed connection does nothing: `on_closed` has told (or will tell) the owner.

        Returns:
            Whether the connection was open: then the other side may get the message.
        """
        if self.closed:
            return False
        head = encode_head(header, len(body), call_id)
        if self._outbox:
            self._queue(head, body, 0)
            return True
        try:
            sent = self._socket.sendmsg((head, body), (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(f"sending failed: {error}")
            return False
        if sent < len(head) + len(body):
            self._queue(head, body, sent)
            self._loop.watch(self, READ | WRITE)
        return True

    def on_ready(self, events: int) -> None:
        if events & WRITE and not self.closed:
            self._flush()
        if events != WRITE and not self.closed:  # a hang-up comes without READ; receiving tells what it is
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

    def _queue(self, head: bytes, body: Body, sent: int) -> None:
        """Keeps all but the first `sent` bytes of a frame for later."""
        if sent < len(head):
            self._outbox.append(memoryview(head)[sent:])
        rest = body[max(0, sent - len(head)) :]
        if len(rest):
            self._outbox.append(rest)

    def _flush(self) -> None:
        outbox = self._outbox
        try:
            sent = self._socket.sendmsg(itertools.islice(outbox, MAX_PARTS_PER_SEND), (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"sending failed: {error}")
            return
        while sent:
            part = outbox.popleft()
            if sent < len(part):
                outbox.appendleft(part[sent:])
                break
            sent -= len(part)
        if not outbox:
            self._loop.watch(self, READ)

    def _receive(self) -> None:
        reader = self._reader
        for _ in range(MAX_RECEIVES_PER_TURN):
            space = reader.space
            try:
                count = self._socket.recv_into(space)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(f"receiving failed: {error}")
                return
            if count == 0:
                self._fail("the peer closed the connection")
                return
            try:
                frame = reader.advance(count)
                while frame is not None:
                    self.on_frame(frame)
                    if self.closed:
                        return
                    frame = reader.next_frame()
            except TransportError as error:
                self._fail(str(error))
                return
            if count < len(space):
                return  # the socket is drained; if not, the loop says so again


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_HOST_S // 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, VANISHED_HOST_S // 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_HOST_S * 1000)
