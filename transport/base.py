"""The interface between roles: a caller has a `Peer`, a callee is a `Service`; the smallest pair is in `local.py`.

A call is a header and rows; its answer is rows, `DegradedRows` or a `CallError`. Answers come through callbacks, in the
thread that turns the caller's loop (or, in-process, before `call` returns).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.errors import CallError


class DegradedRows(NamedTuple):
    """A router's answer that lacks experts of which no replica lives (`experts.on_missing: degrade`)."""

    rows_TD: Tensor
    missing_experts: tuple[int, ...]


Answer = Tensor | DegradedRows | CallError
OnReply = Callable[[Answer], None]


class Peer(Protocol):
    """One process that answers calls."""

    @property
    def ready(self) -> bool:
        """Whether a call made now would be sent at once."""
        ...

    @property
    def rows_in_flight(self) -> int:
        """Rows sent and not answered yet: the load that replica choice goes by."""
        ...

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        """Sends rows; `on_reply` is called exactly once, with rows or with an error (PeerLost: try another peer)."""
        ...

    def close(self) -> None:
        """Ends the connection; calls under way get PeerLost."""
        ...


class Responder(Protocol):
    """Where the answer to one request goes; exactly one of the two is called, once.

    `missing_experts`: those that a router had to do without; empty for the answers of experts.
    """

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None: ...

    def fail(self, error: CallError) -> None: ...


class Request(NamedTuple):
    """One call as the callee sees it."""

    header: Header
    rows_TD: Tensor
    responder: Responder


# Gets every request that has arrived since its last turn, so that rows waiting for the same layer can be merged.
Service = Callable[[list[Request]], None]
