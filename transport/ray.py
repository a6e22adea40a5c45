"""Transport by plain Ray actor calls: a baseline to compare the sockets with.

Not used on the hot path: an actor call costs tens of times what a socket does (docs/performance.md).
"""

from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError
from torch import Tensor

from protos.dispatch_pb2 import CallFailure, Header
from transport.base import Answer, OnReply, Request, Service
from transport.errors import CallError, PeerLost
from transport.frames import EMPTY_BODY, Body
from transport.tensors import answer_header, degraded_header, read_answer, read_call, rows_to_body

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]  # what Ray carries without a copy


class _Answer:
    """Collects the one answer to a request."""

    def __init__(self) -> None:
        self.header = Header()
        self.body: Body = EMPTY_BODY

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None:
        self.header = degraded_header(rows_TD, missing_experts) if missing_experts else answer_header(rows_TD)
        self.body = rows_to_body(rows_TD)

    def fail(self, error: CallError) -> None:
        self.header = Header(failure=CallFailure(code=error.code, message=error.message))


def serve_ray_call(service: Service, header: bytes, body: Bytes) -> tuple[bytes, Bytes]:
    """The callee's side, to be called in an actor's method. Returns the encoded answer header and its body."""
    answer = _Answer()
    try:
        request = Request(*read_call(header, _own(body)), answer)
    except CallError as error:
        answer.fail(error)
    else:
        service([request])
    assert answer.header.WhichOneof("kind"), "a service that answers later cannot be reached by actor calls"
    return answer.header.SerializeToString(), np.frombuffer(answer.body, np.uint8)


class RayPeer:
    """Calls an actor that has a method `serve_rows(header, body)` (see `serve_ray_call`). `poll` takes the answers.

    Args:
        timeout_s: How long one `poll` waits for an answer.
    """

    ready = True

    def __init__(self, actor: Any, timeout_s: float) -> None:
        self._actor = actor
        self._timeout_s = timeout_s
        self._calls: dict[Any, tuple[OnReply, int]] = {}
        self.rows_in_flight = 0

    def call(self, header: Header, rows_TD: Tensor, on_reply: OnReply) -> None:
        body = np.frombuffer(rows_to_body(rows_TD), np.uint8)
        reference = self._actor.serve_rows.remote(header.SerializeToString(), body)
        self._calls[reference] = (on_reply, rows_TD.size(0))
        self.rows_in_flight += rows_TD.size(0)

    def poll(self) -> None:
        """Waits for one answer, if any is due, and hands it on; calls that take too long fail."""
        if not self._calls:
            return
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=self._timeout_s)
        for reference in done or list(self._calls):
            on_reply, num_rows = self._calls.pop(reference)
            self.rows_in_flight -= num_rows
            on_reply(_answer(reference) if done else PeerLost(f"no answer within {self._timeout_s:g} s"))

    def close(self) -> None:
        """Drops the calls under way; each gets PeerLost."""
        calls, self._calls = self._calls, {}
        self.rows_in_flight = 0
        for on_reply, _ in calls.values():
            on_reply(PeerLost("the peer was removed", with_rows=False))


def _answer(reference: Any) -> Answer:
    try:
        header, body = ray.get(reference)
    except RayActorError as error:
        return PeerLost(str(error))
    except RayError as error:
        return CallError("internal", str(error))
    return read_answer(header, _own(body))


def _own(body: Bytes) -> Body:
    """A copy: what Ray hands out is read-only, in its object store."""
    return np.array(body).data
