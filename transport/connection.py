"""A non-blocking stream socket that speaks frames, registered with a `Loop`."""

import contextlib
import itertools
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol

from protos.dispatch_pb2 import Header, Hello, Ping
from transport.errors import TransportError, VersionError
from transport.frames import EMPTY_BODY, MAX_BODY_BYTES, PREFIX, Body, Frame, FrameReader, encode_head
from transport.loop import HANG_UP, READ, WRITE, Loop
from transport.sealing import Opener, Sealer
from transport.tls import TlsSocket

SOCKET_BUFFER_BYTES = 4 << 20
# A peer that takes nothing is given up before what it has not taken fills the memory. More than one frame, because a
# busy expert actor may have several of its routers' waiting.
MAX_UNSENT_BYTES = MAX_BODY_BYTES
MAX_RECEIVES_PER_TURN = 64
MAX_PARTS_PER_SEND = 64

# When a host vanishes (nothing is left there to close its sockets), its connections end after about this long. It is
# also how long a live process may leave a full socket unread.
VANISHED_HOST_S = 20


_PING, _PONG = Header(ping=Ping()), Header(ping=Ping(answer=True))
_ENCODED_PING, _ENCODED_PONG = _PING.SerializeToString(), _PONG.SerializeToString()


NO_LIMIT = 1 << 62  # bytes


class Send(Protocol):
    """`Connection.send`."""

    def __call__(self, header: Header, body: Body = EMPTY_BODY, call_id: int = 0) -> bool: ...


class Connection:
    """Sends and receives frames; closes itself on a bad frame or a lost peer.

    Until it is admitted, it holds and takes no more than `reader` allows; afterwards it also answers pings by itself.

    Args:
        loop: The loop whose thread owns this connection.
        sock: A connected stream socket (or one that is connecting), or one that is to speak TLS; the connection owns it
            from now on. Over TLS, what is sent waits until that is established.
        on_frame: Called with each frame; may be replaced.
        on_closed: Called once, with the reason, when the connection ends for any reason but `close`.
        reader: Cuts what is received into frames, and limits their sizes until `admit`.
        max_untaken_bytes: While the peer leaves more of what was sent to it, nothing is read from it. For the side that
            answers; were it both, each could wait for the other.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket | TlsSocket,
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[str], None],
        reader: FrameReader,
        max_untaken_bytes: int = NO_LIMIT,
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._reader = reader
        self.on_frame = on_frame
        self._on_closed = on_closed
        self._outbox: deque[memoryview] = deque()
        self.outbox_bytes = 0
        """Bytes accepted by `send` that the peer has not taken yet."""
        self.heard = False
        """Whether something has come since the owner last set this to False."""
        self._sealer: Sealer | None = None
        self._admitted = False
        self._reading = True
        self._max_untaken_bytes = max_untaken_bytes
        self.closed = False
        self._tls = sock if isinstance(sock, TlsSocket) else None
        self._establishing = self._tls is not None
        sock.setblocking(False)
        _notice_vanished_host(sock)
        loop.watch(self, WRITE if self._tls is not None and not self._tls.server_side else READ)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def to_be_sealed(self) -> bool:
        """Whether it is plain TCP: on one host, Unix sockets lie in a folder that no other user can enter."""
        return self._socket.family != socket.AF_UNIX and self._tls is None

    @property
    def peer_certificate(self) -> bytes:
        """What the other side's certificate is known by, once a frame has come; empty without TLS."""
        return b"" if self._tls is None else self._tls.peer_certificate

    def admit(self, sealer: Sealer | None, opener: Opener | None) -> None:
        """The peer has proved itself: takes frames of every allowed size from now on, sealed or not, both ways."""
        self._admitted = True
        self._sealer = sealer
        self._reader.admit(opener)
        _enlarge_buffers(self._socket)

    def ask_for_life(self) -> None:
        """Sends a ping: whoever reads it answers at once."""
        self.send(_PING)

    def pause(self) -> None:
        """Reads no more until `resume`: what the peer sends waits at its own end."""
        self._read_if(False)

    def resume(self) -> None:
        """Reads again."""
        self._read_if(True)

    def _read_if(self, wanted: bool) -> None:
        if self._reading != wanted:
            self._reading = wanted
            self._watch()

    def _watch(self) -> None:
        if not self.closed and not self._establishing:
            self._loop.watch(self, (READ if self._may_read else HANG_UP) | (WRITE if self._outbox else 0))

    @property
    def _may_read(self) -> bool:
        return self._reading and self.outbox_bytes <= self._max_untaken_bytes

    def send(self, header: Header, body: Body = EMPTY_BODY, call_id: int = 0) -> bool:
        """Sends at once what the socket takes, and the rest when it can. `body` must not change until then.

        Sending on a closed connection does nothing: `on_closed` has told (or will tell) the owner.

        Returns:
            Whether the connection was open: then the other side may get the message.

        Raises:
            TooLargeError: The message is over what a frame may carry; nothing was sent.
        """
        if self.closed:
            return False
        head = encode_head(header, len(body), call_id)
        if self._outbox and self.outbox_bytes > MAX_UNSENT_BYTES:
            self.fail(f"the peer has not taken {self.outbox_bytes} bytes that were sent to it")
            return False
        if self._sealer is not None:
            prefix = head[: PREFIX.size]
            head = prefix + self._sealer.seal_header(head[PREFIX.size :], prefix)
            body = self._sealer.seal_body(body) if len(body) else body
        if self._outbox or self._establishing:
            self._queue(head, body, 0)
            return True
        try:
            sent = self._socket.sendmsg((head, body), (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.fail(f"sending failed: {error}")
            return False
        if sent < len(head) + len(body):
            self._queue(head, body, sent)
            self._watch()
        return True

    def on_ready(self, events: int) -> None:
        if self._establishing:
            self._establish()
            return
        if events & WRITE and not self.closed:
            self._flush()
        if events != WRITE and not self.closed:  # a hang-up comes without READ; receiving tells what it is
            self._receive()

    def _establish(self) -> None:
        """Goes on with TLS's handshake; once that is done, sends what waits and reads."""
        assert self._tls is not None
        try:
            self._tls.establish()
        except ssl.SSLWantReadError:
            self._loop.watch(self, READ)
        except ssl.SSLWantWriteError:
            self._loop.watch(self, WRITE)
        except (TransportError, OSError) as error:
            self.fail(str(error))
        else:
            self._establishing = False
            self._watch()
            if self._outbox:
                self._flush()
            if not self.closed:
                self._receive()

    def close(self) -> None:
        """Closes without calling `on_closed`."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self)
            self._socket.close()
            self._outbox.clear()
            self.outbox_bytes = 0

    def fail(self, reason: str) -> None:
        """Closes, and tells the owner so after the present turn."""
        if not self.closed:
            self.close()
            # The owner may react by sending elsewhere; let it do so outside of this connection's own calls.
            self._loop.call_soon(lambda: self._on_closed(reason))

    def _queue(self, head: bytes, body: Body, sent: int) -> None:
        """Keeps all but the first `sent` bytes of a frame for later."""
        could_read = self._may_read
        self.outbox_bytes += len(head) + len(body) - sent
        if sent < len(head):
            self._outbox.append(memoryview(head)[sent:])
        rest = body[max(0, sent - len(head)) :]
        if len(rest):
            self._outbox.append(rest)
        if could_read and not self._may_read:
            self._watch()

    def _flush(self) -> None:
        outbox = self._outbox
        try:
            sent = self._socket.sendmsg(itertools.islice(outbox, MAX_PARTS_PER_SEND), (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"sending failed: {error}")
            return
        held_back = not self._may_read
        self.outbox_bytes -= sent
        while sent:
            part = outbox.popleft()
            if sent < len(part):
                outbox.appendleft(part[sent:])
                break
            sent -= len(part)
        if not outbox or held_back:
            self._watch()

    def _receive(self) -> None:
        reader = self._reader
        for _ in range(MAX_RECEIVES_PER_TURN):
            space = reader.space
            try:
                count = self._socket.recv_into(space)
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(f"receiving failed: {error}")
                return
            if count == 0:
                self.fail("the peer closed the connection")
                return
            self.heard = True
            try:
                frame = reader.advance(count)
                while frame is not None:
                    if frame.call_id:  # no ping: the way of rows and answers
                        self.on_frame(frame)
                    else:
                        self._take(frame)
                    if self.closed:
                        return
                    frame = reader.next_frame()
            except TransportError as error:
                self._refuse(error)
                return
            if (count < len(space) and self._tls is None) or not self._may_read:
                return  # the socket is drained; if not, the loop says so again
        if self._tls is not None and self._tls.pending_bytes:
            self._loop.post(self._receive_pending)

    def _receive_pending(self) -> None:
        if not self.closed:
            self._receive()

    def _take(self, frame: Frame) -> None:
        encoded = frame.encoded
        if self._admitted and encoded == _ENCODED_PING:
            self.send(_PONG)
        elif not self._admitted or encoded != _ENCODED_PONG:
            self.on_frame(frame)

    def _refuse(self, error: TransportError) -> None:
        """Ends the connection for what the peer sent. One of another version is shown ours, so that it can say why."""
        if isinstance(error, VersionError):
            with contextlib.suppress(OSError):  # it is not there any more, or does not read
                self._socket.send(encode_head(Header(hello=Hello()), 0), socket.MSG_NOSIGNAL)
        self.fail(str(error))


def _enlarge_buffers(sock: socket.socket | TlsSocket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)


def _notice_vanished_host(sock: socket.socket | TlsSocket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_HOST_S // 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, VANISHED_HOST_S // 4)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_HOST_S * 1000)
