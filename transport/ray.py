"""Transport by plain Ray actor calls: a baseline to compare the sockets with.

Not used on the hot path: an actor call costs tens of times what a socket does (docs/performance.md).
"""

from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError
from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.base import OnReply, Request, Service
from transport.errors import CallError, PeerLost
from transport.frames import Body
from transport.tensors import body_to_rows, describe_rows, rows_to_body


class _Answer:
    """Collects the one answer to a request."""

    def __init__(self) -> None:
        self.value: Tensor | CallError | None = None

    def reply(self, rows_TD: Tensor) -> None:
        self.value = rows_TD

    def fail(self, error: CallError) -> None:
        self.value = error


def serve_ray_call(service: Service, header: bytes, body: Body) -> tuple[bytes, Body]:
    """The callee's side, to be called in an actor's method. Returns the encoded answer header and its body.

    Raises:
        CallError: The service failed the call.
    """
    parsed = Header.FromString(header)
    kind = parsed.WhichOneof("kind")
    described = parsed.layer_rows.rows if kind == "layer_rows" else parsed.expert_rows.rows
    answer = _Answer()
    service([Request(parsed, body_to_rows(described, np.array(body)), answer)])
    if isinstance(answer.value, CallError):
        raise answer.value
    assert answer.value is not None, "a service that answers later cannot be reached by actor calls"
    return Header(rows=describe_rows(answer.value)).SerializeToString(), rows_to_body(answer.value)


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
        reference = self._actor.serve_rows.remote(header.SerializeToString(), rows_to_body(rows_TD))
        self._calls[reference] = (on_reply, rows_TD.shape[0])
        self.rows_in_flight += rows_TD.shape[0]

    def poll(self) -> None:
        """Waits for one answer and hands it on; a call that takes too long fails."""
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=self._timeout_s)
        for reference in done or list(self._calls):
            on_reply, num_rows = self._calls.pop(reference)
            self.rows_in_flight -= num_rows
            on_reply(self._answer(reference) if done else PeerLost(f"no answer within {self._timeout_s:g} s"))

    def close(self) -> None:
        """Drops the calls under way; each gets PeerLost."""
        calls, self._calls = self._calls, {}
        self.rows_in_flight = 0
        for on_reply, _ in calls.values():
            on_reply(PeerLost("the peer was removed"))

    def _answer(self, reference: Any) -> Tensor | CallError:
        try:
            header, body = ray.get(reference)
        except RayActorError as error:
            return PeerLost(str(error))
        except RayError as error:
            return CallError("internal", str(error))
        return body_to_rows(Header.FromString(header).rows, np.array(body))
