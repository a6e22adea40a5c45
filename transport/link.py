"""The connecting side: one persistent, authenticated connection to an address, made anew when it breaks."""

from collections.abc import Callable

from transport.address import Address
from transport.connection import Connection, Send
from transport.errors import HandshakeError
from transport.frames import Frame
from transport.handshake import ClientHandshake, allow_all_sizes, handshake_reader
from transport.loop import Loop, Timer

HANDSHAKE_TIMEOUT_S = 30.0
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0


class Link:
    """A connection to `address` that authenticates itself and reconnects with growing pauses until `close`.

    Args:
        loop: The loop whose thread owns this link.
        address: Where to connect.
        key: The service's data-plane key.
        role: What this side is (`router`, `node`, `gateway`); for the other side's log.
        on_frame: Called with each frame once the handshake is complete.
        on_up: Called when messages may be sent.
        on_down: Called with the reason when an established connection ends.
    """

    def __init__(
        self,
        loop: Loop,
        address: Address,
        key: bytes,
        role: str,
        on_frame: Callable[[Frame], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self.address = address
        self._key = key
        self._role = role
        self._on_frame = on_frame
        self._on_up = on_up
        self._on_down = on_down
        self._connection: Connection | None = None
        self.send: Send
        """Sends one message; to be called only while `up`."""
        self.up = False
        """Whether the connection is established and authenticated."""
        self._handshake = ClientHandshake(key, role)
        self._reader = handshake_reader()
        self._timer: Timer | None = None
        self._retry_s = FIRST_RETRY_S
        self._closed = False
        self.last_error = "not connected yet"
        self._connect()

    def close(self) -> None:
        """Ends the connection for good; `on_down` is not called."""
        self._closed = True
        self.up = False
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> None:
        if self._closed:
            return
        try:
            sock = self.address.connect()
        except OSError as error:
            self._retry(f"connecting to {self.address} failed: {error}")
            return
        self._handshake = ClientHandshake(self._key, self._role)
        self._reader = handshake_reader()
        self._connection = Connection(self._loop, sock, self._first_frame, self._lost, self._reader)
        self.send = self._connection.send
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_late)
        self._connection.send(self._handshake.start())

    def _first_frame(self, frame: Frame) -> None:
        assert self._connection is not None
        assert self._timer is not None
        if frame.header.WhichOneof("kind") != "hello":
            raise HandshakeError("the server sent a message before the handshake was complete")
        self._connection.send(self._handshake.receive(frame.header))
        allow_all_sizes(self._reader)
        self._connection.on_frame = self._on_frame
        self._timer.cancel()
        self._retry_s = FIRST_RETRY_S
        self.up = True
        self._on_up()

    def _handshake_late(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._retry(f"{self.address} did not answer the handshake within {HANDSHAKE_TIMEOUT_S:g} s")

    def _lost(self, reason: str) -> None:
        was_up, self.up = self.up, False
        self._retry(reason)
        if was_up:
            self._on_down(reason)

    def _retry(self, reason: str) -> None:
        self.last_error = reason
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = self._loop.call_later(self._retry_s, self._connect)
            self._retry_s = min(LAST_RETRY_S, self._retry_s * 2)
