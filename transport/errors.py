"""Errors of the data plane.

TransportError
├── FrameError          the bytes received are not a valid frame: that connection is closed, nothing else
│   └── VersionError    they are a frame of another version of Manta
├── TooLargeError       a message is over what one frame may carry: it is not sent
├── HandshakeError      the peer does not know a key of the service
└── CallError           a call was not done; `code` says why
    └── PeerLost        the connection ended before the answer came: the call may be sent to another peer
"""


class TransportError(Exception):
    """Root of everything that the data plane raises."""


class FrameError(TransportError):
    """The bytes received are not a valid frame."""


class VersionError(FrameError):
    """The bytes received are a frame of another version of Manta."""


class TooLargeError(TransportError):
    """A message is over what one frame may carry; it was not sent."""


class HandshakeError(TransportError):
    """The peer could not prove that it knows a key of the service."""


# A failed step tells each of its sequences why, in one frame.
MAX_CODE_CHARS, MAX_MESSAGE_CHARS = 64, 2000


def shortened(message: str) -> str:
    """Returns a reason without what is too long to be told: it may repeat whatever another process sent."""
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]} ..."


class CallError(TransportError):
    """A call that was not done. What is too long, as what another process says may be, is cut.

    Args:
        code: One word for machines: `expert_unavailable`, `invalid_request`, `internal`, `peer_lost`.
        message: A sentence for people.
    """

    def __init__(self, code: str, message: str) -> None:
        code, message = code[:MAX_CODE_CHARS], shortened(message)
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
