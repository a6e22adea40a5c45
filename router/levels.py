"""From a layer's rows to a plan, at each routing level: what a router does with its gates.

T rows, D model dim, E experts, K chosen experts per row, N = T*K row copies, S tasks.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_gates
from model.config import MixtralConfig
from router.gating import gate_weights, task_choices, top_k_gate, top_k_living
from router.plan import Plan, dispatch
from router.single import route_row
from transport.base import Request
from transport.errors import CallError


class Gates(Protocol):
    """The gates of every layer."""

    @property
    def num_experts(self) -> int: ...

    def check(self, request: Request) -> None:
        """Raises CallError for a LayerRows that `route` cannot take."""
        ...

    def route(self, request: Request, missing: Collection[int]) -> tuple[Tensor, Plan]:
        """Returns row copies [N, D] sorted by expert, and the plan to combine the answers with.

        Args:
            missing: Experts to do without; at least one must be left.
        """
        ...


class TokenGates:
    """Each row is gated on its own.

    Args:
        gates: One gate_ED for each layer.
        top_k: Experts per row.
    """

    def __init__(self, gates: Sequence[Tensor], top_k: int) -> None:
        self._gates = [gate_weights(gate_ED) for gate_ED in gates]
        self._top_k = top_k
        self.num_experts, self._width = gates[0].shape

    def check(self, request: Request) -> None:
        """See `Gates.check`."""
        _check_shape(request, len(self._gates), self._width)

    def route(self, request: Request, missing: Collection[int]) -> tuple[Tensor, Plan]:
        """See `Gates.route`."""
        gate_ED = self._gates[request.header.layer_rows.layer]
        rows_TD = request.rows_TD.to(gate_ED.device)
        return _route(rows_TD, rows_TD, gate_ED, self._top_k, missing)


class SentenceGates(TokenGates):
    """The same gates, but they see a gate row instead of each row: the mean of its sequence's first rows."""

    def check(self, request: Request) -> None:
        """See `Gates.check`."""
        super().check(request)
        if not request.header.layer_rows.has_gate_rows or request.rows_TD.shape[0] % 2:
            raise CallError(
                "invalid_request",
                f"{request.rows_TD.shape[0]} rows, has_gate_rows {request.header.layer_rows.has_gate_rows}; "
                "allowed, as the model routes by sentence: rows and as many gate rows",
            )

    def route(self, request: Request, missing: Collection[int]) -> tuple[Tensor, Plan]:
        """See `Gates.route`."""
        gate_ED = self._gates[request.header.layer_rows.layer]
        rows_TD, gate_rows_TD = request.rows_TD.to(gate_ED.device).chunk(2)
        return _route(rows_TD, gate_rows_TD, gate_ED, self._top_k, missing)


class TaskGates:
    """Each task's experts are fixed.

    Args:
        task_gates: One task_gate_SE for each layer.
        top_k: Experts per row.
        width: D, elements of a row.
    """

    def __init__(self, task_gates: Sequence[Tensor], top_k: int, width: int) -> None:
        self._task_gates = task_gates
        self._top_k = top_k
        self._width = width
        self._num_tasks, self.num_experts = task_gates[0].shape
        self._choices = [task_choices(task_gate_SE, top_k) for task_gate_SE in task_gates]

    def check(self, request: Request) -> None:
        """See `Gates.check`."""
        _check_shape(request, len(self._task_gates), self._width)
        asked = request.header.layer_rows
        task_ids, counts = asked.task_ids, asked.num_rows_per_task
        fitting = len(task_ids) == len(counts) <= request.rows_TD.shape[0]
        if not fitting or sum(counts) != request.rows_TD.shape[0] or max(task_ids) >= self._num_tasks:
            raise CallError(
                "invalid_request",
                f"{len(task_ids)} runs of tasks up to {max(task_ids, default=-1)}, {len(counts)} counts, {sum(counts)} "
                f"rows; allowed, as the model routes by task: tasks 0 to {self._num_tasks - 1}, with "
                f"{request.rows_TD.shape[0]} rows together",
            )

    def route(self, request: Request, missing: Collection[int]) -> tuple[Tensor, Plan]:
        """See `Gates.route`."""
        asked = request.header.layer_rows
        task_gate_SE = self._task_gates[asked.layer]
        choices = task_choices(task_gate_SE, self._top_k, missing) if missing else self._choices[asked.layer]
        rows_TD = request.rows_TD.to(task_gate_SE.device)
        counts = torch.tensor(list(asked.num_rows_per_task))
        tasks_T = torch.tensor(list(asked.task_ids)).repeat_interleave(counts).to(task_gate_SE.device)
        weights_SK, experts_SK = choices
        weights_TK, experts_TK = weights_SK.index_select(0, tasks_T), experts_SK.index_select(0, tasks_T)
        return dispatch(rows_TD, weights_TK, experts_TK, self.num_experts)


def load_gates(directory: Path, config: MixtralConfig, dtype: torch.dtype, device: torch.device) -> Gates:
    """Reads a checkpoint's gates.

    Raises:
        CheckpointError: They cannot be read; names the file and the tensor.
    """
    gates = [gate.to(device) for gate in read_gates(CheckpointReader(directory), config, dtype)]
    if config.routing.level == "task":
        return TaskGates(gates, config.top_k, config.hidden_size)
    return (SentenceGates if config.routing.level == "sentence" else TokenGates)(gates, config.top_k)


def _check_shape(request: Request, num_layers: int, width: int) -> None:
    layer, shape = request.header.layer_rows.layer, tuple(request.rows_TD.shape)
    if layer >= num_layers or shape[0] == 0 or shape[1] != width:
        raise CallError(
            "invalid_request",
            f"layer {layer} and rows of shape {shape}; allowed: layers 0 to {num_layers - 1}, "
            f"at least one row, rows of {width} elements",
        )


def _route(
    rows_TD: Tensor, gate_rows_TD: Tensor, gate_ED: Tensor, top_k: int, missing: Collection[int]
) -> tuple[Tensor, Plan]:
    num_experts = gate_ED.shape[0]
    if missing:
        return dispatch(rows_TD, *top_k_living(gate_rows_TD, gate_ED, top_k, missing), num_experts)
    if rows_TD.shape[0] == 1:
        return route_row(rows_TD, gate_rows_TD, gate_ED, top_k)
    return dispatch(rows_TD, *top_k_gate(gate_rows_TD, gate_ED, top_k), num_experts)
