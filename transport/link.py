"""The connecting side: one persistent, authenticated connection to an address, made anew when it breaks."""

import socket
from collections.abc import Callable

from transport.address import Address
from transport.connection import Connection, Send
from transport.credentials import Credentials
from transport.frames import Frame
from transport.handshake import ClientHandshake, handshake_reader
from transport.loop import Loop, Timer
from transport.membership import Role
from transport.sealing import Opener, Sealer

# An expert actor that computes does not answer meanwhile.
HANDSHAKE_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0  # the default of `limits.answer_timeout_s`
# So often within that time a link is looked at. Looks are counted instead of seconds: while this very process stands
# still, nobody else is silent.
LOOKS = 4
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 2.0


class _Unchanged:
    """Counts how often a value has been seen again without a change; None counts as one."""

    def __init__(self) -> None:
        self._last: object = None
        self.num = 0

    def look(self, value: object) -> int:
        self.num = self.num + 1 if value is not None and value == self._last else 0
        self._last = value
        return self.num


class Link:
    """A connection to `address` that authenticates itself and reconnects with growing pauses until `close`.

    It notices a connection over which nothing comes any more, though it stands (a host behind a middlebox that has
    forgotten it, a process that does not read): when it has heard nothing for a while, it asks, and whoever turns its
    loop answers.

    Args:
        loop: The loop whose thread owns this link.
        address: Where to connect.
        role: What this side is.
        on_frame: Called with each frame once the handshake is complete.
        on_up: Called when messages may be sent.
        on_down: Called with the reason when an established connection ends.
        answer_timeout_s: `limits.answer_timeout_s`: a connection that is silent for so long, though it was asked,
            ends. It must be longer than the other side computes without turning its loop.
        oldest: Names the work that has waited longest for this connection, or None; if it is the same for that long,
            the connection ends too.
    """

    def __init__(
        self,
        loop: Loop,
        address: Address,
        credentials: Credentials,
        role: Role,
        on_frame: Callable[[Frame], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        oldest: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = loop
        self.address = address
        self._credentials = credentials
        self._role: Role = role
        self._on_frame = on_frame
        self._on_up = on_up
        self._on_down = on_down
        self._answer_timeout_s = answer_timeout_s
        self._handshake_timeout_s = min(HANDSHAKE_TIMEOUT_S, answer_timeout_s)
        self._oldest = oldest
        self._num_silent, self._delay = 0, _Unchanged()
        self._connection: Connection | None = None
        self.send: Send
        """Sends one message; to be called only while `up`."""
        self.up = False
        """Whether the connection is established and authenticated."""
        self._handshake = ClientHandshake(credentials, role)
        self._timer: Timer | None = None
        self._retry_s = FIRST_RETRY_S
        self._closed = False
        self.last_error = "not connected yet"
        self._forget_credentials = credentials.on_change(lambda: loop.post(self._leave_revoked))
        self._connect()

    def close(self) -> None:
        """Ends the connection for good; `on_down` is not called."""
        self._closed = True
        self.up = False
        self._forget_credentials()
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
        tls = self._credentials.tls if sock.family != socket.AF_UNIX else None
        self._handshake = ClientHandshake(self._credentials, self._role)
        self._connection = Connection(
            self._loop, tls.connect(sock) if tls else sock, self._first_frame, self._lost, handshake_reader()
        )
        self.send = self._connection.send
        self._timer = self._loop.call_later(self._handshake_timeout_s, self._handshake_late)
        self._connection.send(self._handshake.start())

    def _first_frame(self, frame: Frame) -> None:
        connection = self._connection
        assert connection is not None
        assert self._timer is not None
        if not connection.send(self._handshake.receive(frame.header, connection.peer_certificate)):
            return  # it has ended, and `_lost` will hear of it
        if connection.to_be_sealed:
            keys = self._handshake.seal_keys()
            connection.admit(Sealer(keys.to_server), Opener(keys.to_client))
        else:
            connection.admit(None, None)
        connection.on_frame = self._on_frame
        self._timer.cancel()
        self._retry_s = FIRST_RETRY_S
        self._num_silent, self._delay = 0, _Unchanged()
        self._look()
        self.up = True
        self._on_up()

    def _look(self) -> None:
        """Looks whether the other side lives, again and again."""
        connection = self._connection
        assert connection is not None
        self._timer = self._loop.call_later(self._answer_timeout_s / LOOKS, self._look)
        self._num_silent = 0 if connection.heard else self._num_silent + 1
        connection.heard = False
        silent, delayed = self._num_silent, self._delay.look(self._oldest())
        if silent >= LOOKS:
            connection.fail(f"nothing was heard for {self._answer_timeout_s:g} s (limits.answer_timeout_s)")
        elif delayed >= LOOKS:
            connection.fail(f"a call was not answered within {self._answer_timeout_s:g} s (limits.answer_timeout_s)")
        elif silent == 1:
            connection.ask_for_life()

    def _handshake_late(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._retry(f"{self.address} did not answer the handshake within {self._handshake_timeout_s:g} s")

    def _leave_revoked(self) -> None:
        if self.up and self._connection is not None and not self._credentials.accepts(self._handshake.key):
            self._connection.fail("its key is not the service's any more")

    def _lost(self, reason: str) -> None:
        was_up, self.up = self.up, False
        if not was_up:
            reason = f"{reason}, before the handshake was complete: its key or its version of Manta is another one"
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
