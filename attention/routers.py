"""How an attention node reaches the experts: through any router, over whatever transport its peers have."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from protos.dispatch_pb2 import Header
from transport.base import Answer, DegradedRows
from transport.errors import CallError
from transport.replicas import Replicas
from transport.tensors import gate_rows_header, layer_header, task_header

ROUTERS = "the routers"


class RouterClient:
    """Sends a layer's rows to the least loaded router and waits for their combined expert output.

    Args:
        routers: The router replicas, in the group ROUTERS.
        pump: Turns the loop that carries the answers, for at most so many seconds.
        timeout_s: How long an answer may take (`limits.request_timeout_s`).
    """

    def __init__(self, routers: Replicas, pump: Callable[[float], None], timeout_s: float) -> None:
        self._routers = routers
        self._pump = pump
        self._timeout_s = timeout_s

    def exchange(self, layer: int, rows_TD: Tensor) -> Tensor | DegradedRows:
        """Returns the combined expert output of `rows_TD`, [T, D], which may lack missing experts.

        Raises:
            CallError: `expert_unavailable` when an expert (or every router) stays away, or no answer comes in time;
                `internal` when the answer is not of the rows' shape.
        """
        return self._answer(layer_header(layer, rows_TD), rows_TD, rows_TD)

    def exchange_gated(self, layer: int, rows_TD: Tensor, gate_rows_TD: Tensor) -> Tensor | DegradedRows:
        """`exchange` where the gate sees `gate_rows_TD` instead of the rows (sentence-level routing)."""
        sent_TD = torch.cat((rows_TD, gate_rows_TD))
        return self._answer(gate_rows_header(layer, sent_TD), sent_TD, rows_TD)

    def exchange_by_task(
        self, layer: int, rows_TD: Tensor, counts: tuple[tuple[int, int], ...]
    ) -> Tensor | DegradedRows:
        """`exchange` where a row's task chooses its experts.

        Args:
            counts: Tasks and how many of the rows each one has, in the order of the rows.
        """
        return self._answer(task_header(layer, counts, rows_TD), rows_TD, rows_TD)

    def _answer(self, header: Header, sent_TD: Tensor, rows_TD: Tensor) -> Tensor | DegradedRows:
        answers: list[Answer] = []
        self._routers.call(ROUTERS, header, sent_TD, answers.append)
        deadline_s = time.monotonic() + self._timeout_s
        while not answers:
            left_s = deadline_s - time.monotonic()
            # Once more when it is late: an answer may lie there, if this process was held up.
            self._pump(max(0.0, left_s))
            if left_s <= 0 and not answers:
                raise CallError("expert_unavailable", f"no answer from the experts within {self._timeout_s:g} s")
        answer = answers[0]
        if isinstance(answer, CallError):
            raise answer
        if isinstance(answer, DegradedRows):
            return DegradedRows(_fitting(answer.rows_TD, rows_TD), answer.missing_experts)
        return _fitting(answer, rows_TD)


def _fitting(answer_TD: Tensor, rows_TD: Tensor) -> Tensor:
    if answer_TD.shape != rows_TD.shape:
        got, sent = tuple(answer_TD.shape), tuple(rows_TD.shape)
        raise CallError("internal", f"a router answered rows of shape {got} to rows of shape {sent}")
    return answer_TD.to(rows_TD)
