"""Errors of the data plane.

TransportError
├── FrameError          the bytes received are not a valid frame: that connection is closed, nothing else
├── HandshakeError      the peer does not know the service's key
└── CallError           a call was not done; `code` says why
    └── PeerLost        the connection ended before the answer came: the call may be sent to another peer
"""


class TransportError(Exception):
    """Root of everything that the data plane raises."""


class FrameError(TransportError):
    """The bytes received are not a valid frame."""


class HandshakeError(TransportError):
    """The peer could not prove that it knows the service's key."""


class CallError(TransportError):
    """A call that was not done.

    Args:
        code: One word for machines: `expert_unavailable`, `invalid_request`, `internal`, `peer_lost`.
        message: A sentence for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class PeerLost(CallError):
    """The connection ended before the answer came.

    Args:
        with_rows: Whether the peer went away by itself and may have had the rows: they may be what it died of. Not if
            they could not be sent, nor if the caller let go of the peer.
    """

    def __init__(self, message: str, with_rows: bool = True) -> None:
        super().__init__("peer_lost", message)
        self.with_rows = with_rows
