"""The listening side of a process: accepts connections, and bounds what those cost that have not proved themselves."""

import errno
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from transport.handshake import MAX_UNPROVEN
from transport.loop import READ, Loop, Timer

logger = logging.getLogger(__name__)

# What `accept` fails with while this process or its host has no room for one more connection.
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
FULL_PAUSE_S = 0.2  # until it is tried again: who waits stays ready, and would keep the loop turning


class Accepted(Protocol):
    """A connection that was accepted."""

    def dismiss(self, reason: str) -> None:
        """Ends it, before it has proved itself."""
        ...


class Listener:
    """Accepts connections of one socket.

    At most MAX_UNPROVEN of them have not proved themselves: when one more comes, the oldest goes. An honest peer needs
    a few milliseconds to prove itself, and connects again if it was pushed out; were the newest refused instead, as
    many silent ones would keep everybody out for PROOF_TIMEOUT_S.

    Args:
        accept: Makes a session of a connection; it must call `settle` once that has proved itself or has ended.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, accept: Callable[["Listener", socket.socket], Accepted]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._accept = accept
        self._unproven: dict[Accepted, None] = {}  # in the order in which they came
        self._retry: Timer | None = None
        self._said = False
        sock.setblocking(False)
        loop.watch(self, READ)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def num_unproven(self) -> int:
        """Connections that have not proved themselves."""
        return len(self._unproven)

    def settle(self, accepted: Accepted) -> None:
        """Notes that a connection has proved itself, or has ended."""
        self._unproven.pop(accepted, None)

    def on_ready(self, events: int) -> None:
        del events
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            if error.errno in FULL:
                self._pause(error)
            return  # else the client gave up before it was accepted
        self._said = False
        if len(self._unproven) >= MAX_UNPROVEN:
            oldest = next(iter(self._unproven))
            self.settle(oldest)
            oldest.dismiss(f"{MAX_UNPROVEN} others have not proved themselves either")
        self._unproven[self._accept(self, sock)] = None

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
        """Accepts no more."""
        if self._retry is None:
            self._loop.unwatch(self)
        else:
            self._retry.cancel()
        self._socket.close()
