"""Rows as bytes and back, without copies where the device allows it. T rows, D elements each."""

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protos.dispatch_pb2 import BFLOAT16, FLOAT32, FLOAT64, Dtype, ExpertRows, Header, LayerRows, Rows
from transport.base import Answer, DegradedRows
from transport.errors import CallError
from transport.frames import EMPTY_BODY, Body, parse_header

_TO_WIRE: dict[torch.dtype, Dtype] = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float64: FLOAT64}
_FROM_WIRE: dict[Dtype, torch.dtype] = {wire: dtype for dtype, wire in _TO_WIRE.items()}
_DTYPES = ", ".join(f"{wire} ({Dtype.Name(wire)})" for wire in _FROM_WIRE)
MAX_REMEMBERED_BYTES = 1024
MAX_REMEMBERED_EXPERTS = 8
MAX_REMEMBERED_TASKS = 8


def layer_header(layer: int, rows_TD: Tensor) -> Header:
    """Returns the header of a node's call of a router. Shared: not to be changed."""
    return _layer_header(layer, rows_TD.dtype, rows_TD.size(0), rows_TD.size(1))


def gate_rows_header(layer: int, rows_TD: Tensor) -> Header:
    """`layer_header` of rows whose second half are gate rows (sentence-level routing)."""
    return _layer_header(layer, rows_TD.dtype, rows_TD.size(0), rows_TD.size(1), has_gate_rows=True)


def task_header(layer: int, counts: tuple[tuple[int, int], ...], rows_TD: Tensor) -> Header:
    """`layer_header` of rows that are routed by task.

    Args:
        counts: Tasks and how many of the rows each one has, in the order of the rows.
    """
    make = _layer_header if len(counts) <= MAX_REMEMBERED_TASKS else _layer_header.__wrapped__
    return make(layer, rows_TD.dtype, rows_TD.size(0), rows_TD.size(1), counts=counts)


@functools.lru_cache(4096)
def _layer_header(
    layer: int,
    dtype: torch.dtype,
    num_rows: int,
    width: int,
    has_gate_rows: bool = False,
    counts: tuple[tuple[int, int], ...] = (),
) -> Header:
    rows = LayerRows(
        layer=layer,
        rows=_describe(dtype, num_rows, width),
        has_gate_rows=has_gate_rows,
        task_ids=[task for task, _ in counts],
        num_rows_per_task=[count for _, count in counts],
    )
    return Header(layer_rows=rows)


def expert_header(layer: int, counts: tuple[tuple[int, int], ...], rows_ND: Tensor) -> Header:
    """Returns the header of a router's call of an expert shard. Shared: not to be changed.

    Args:
        counts: Experts and how many of the rows each one gets, in the order of the rows.
    """
    make = _expert_header if len(counts) <= MAX_REMEMBERED_EXPERTS else _expert_header.__wrapped__
    return make(layer, counts, rows_ND.dtype, rows_ND.size(0), rows_ND.size(1))


@functools.lru_cache(4096)
def _expert_header(
    layer: int, counts: tuple[tuple[int, int], ...], dtype: torch.dtype, num_rows: int, width: int
) -> Header:
    rows = ExpertRows(
        layer=layer,
        expert_ids=[expert for expert, _ in counts],
        num_rows_per_expert=[count for _, count in counts],
        rows=_describe(dtype, num_rows, width),
    )
    return Header(expert_rows=rows)


def answer_header(rows_TD: Tensor) -> Header:
    """Returns the header of an answer of `rows_TD`. Shared: not to be changed."""
    return _answer_header(rows_TD.dtype, rows_TD.size(0), rows_TD.size(1))


@functools.lru_cache(4096)
def _answer_header(dtype: torch.dtype, num_rows: int, width: int) -> Header:
    return Header(rows=_describe(dtype, num_rows, width))


def degraded_header(rows_TD: Tensor, missing_experts: tuple[int, ...]) -> Header:
    """Returns the header of an answer that lacks `missing_experts`."""
    header = Header()
    header.CopyFrom(answer_header(rows_TD))
    header.rows.missing_experts.extend(missing_experts)
    return header


@functools.lru_cache(4096)
def _describe(dtype: torch.dtype, num_rows: int, width: int) -> Rows:
    return Rows(dtype=_TO_WIRE[dtype], num_rows=num_rows, width=width)


def rows_to_body(rows_TD: Tensor) -> Body:
    """Returns the bytes of `rows_TD`: a view, which keeps them alive, where they are contiguous and on the CPU."""
    if not (rows_TD.is_cpu and rows_TD.is_contiguous()):  # two cheap questions instead of two calls that do nothing
        rows_TD = rows_TD.cpu().contiguous()
    num_bytes = rows_TD.nbytes
    if not num_bytes:
        return EMPTY_BODY
    # Takes a third of the time of `rows_TD.numpy()`, which moreover knows no bfloat16.
    view = _bytes_type(num_bytes).from_address(rows_TD.data_ptr())
    view.rows = rows_TD
    return memoryview(view)


@functools.lru_cache(4096)
def _bytes_type(num_bytes: int) -> Any:
    return ctypes.c_ubyte * num_bytes


def read_call(encoded: bytes, body: Body) -> tuple[Header, Tensor]:
    """Returns a call's header, which other calls share (not to be changed), and its rows.

    Raises:
        CallError: `invalid_request`, when it is none, or the body's size is not what the header says.
        FrameError: The header does not parse.
    """
    kind, header, shape = _decode(encoded)
    if kind not in ("layer_rows", "expert_rows"):
        raise CallError("invalid_request", f"a call of kind {kind}; allowed: layer_rows, expert_rows")
    return header, _to_rows(shape, body)


def read_answer(encoded: bytes, body: Body) -> Answer:
    """Returns what a call was answered with: rows (perhaps without some experts), or why it was not done.

    Raises:
        FrameError: The header does not parse.
    """
    kind, header, shape = _decode(encoded)
    if kind == "failure":
        return CallError(header.failure.code, header.failure.message)
    try:
        rows_TD = _to_rows(shape, body)
    except CallError as error:
        return error
    return DegradedRows(rows_TD, shape.missing_experts) if shape.missing_experts else rows_TD


class _Shape(NamedTuple):
    """What a header says of its body."""

    num_rows: int
    width: int
    dtype: torch.dtype | None  # None: not one of those allowed
    num_bytes: int
    wire_dtype: int
    missing_experts: tuple[int, ...]


def _shape(rows: Rows) -> _Shape:
    dtype = _FROM_WIRE.get(rows.dtype)
    num_bytes = rows.num_rows * rows.width * (dtype.itemsize if dtype else 0)
    return _Shape(rows.num_rows, rows.width, dtype, num_bytes, rows.dtype, tuple(rows.missing_experts))


def _decode(encoded: bytes) -> tuple[str | None, Header, _Shape]:
    """Returns a header's kind, the header itself and what it says of its body."""
    # The calls of a step are those of the step before: mostly a look into a table. Of long headers, each is another.
    return _decode_again(encoded) if len(encoded) <= MAX_REMEMBERED_BYTES else _decode_again.__wrapped__(encoded)


@functools.lru_cache(4096)
def _decode_again(encoded: bytes) -> tuple[str | None, Header, _Shape]:
    header = parse_header(encoded)
    kind = header.WhichOneof("kind")
    if kind == "layer_rows":
        return kind, header, _shape(header.layer_rows.rows)
    return kind, header, _shape(header.expert_rows.rows if kind == "expert_rows" else header.rows)


def _to_rows(shape: _Shape, body: Body) -> Tensor:
    num_rows, width, dtype, num_bytes, wire_dtype, _ = shape
    if dtype is None:
        raise CallError("invalid_request", f"rows have dtype {wire_dtype}; allowed: {_DTYPES}")
    if len(body) != num_bytes:
        raise CallError("invalid_request", f"a body has {len(body)} bytes; its header describes {num_bytes}")
    if not num_bytes:
        return torch.empty(num_rows, width, dtype=dtype)
    return torch.frombuffer(body, dtype=dtype).view(num_rows, width)
