"""In-process transport: the oracle and the debug mode.

A call runs the service, and its answer comes before `call` returns.
"""

from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.base import DegradedRows, OnReply, Request, Service
from transport.errors import CallError


class _LocalResponder:
    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None:
        self._on_reply(DegradedRows(rows_TD, missing_experts) if missing_experts else rows_TD)

    def fail(self, error: CallError) -> None:
        self._on_reply(error)


class LocalPeer:
    """A peer in this very process."""

    ready = True
    rows_in_flight = 0

    def __init__(self, service: Service) -> None:
        self._service = service

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        self._service([Request(header, rows_TD, _LocalResponder(on_reply))])

    def close(self) -> None:
        """Nothing to close."""
