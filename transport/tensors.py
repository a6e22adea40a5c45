"""Rows as bytes and back, without copies where the device allows it. T rows, D elements each."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from protos.dispatch_pb2 import BFLOAT16, FLOAT32, FLOAT64, Dtype, Header, Rows
from transport.errors import CallError
from transport.frames import EMPTY_BODY, Body

_TO_WIRE: dict[torch.dtype, Dtype] = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float64: FLOAT64}
_FROM_WIRE: dict[Dtype, torch.dtype] = {wire: dtype for dtype, wire in _TO_WIRE.items()}


def describe_rows(rows_TD: Tensor) -> Rows:
    """Returns the header part that describes `rows_TD`; to be copied into a header, not to be changed."""
    return _describe(rows_TD.dtype, rows_TD.size(0), rows_TD.size(1))


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


def body_to_rows(rows: Rows, body: Body) -> Tensor:
    """Returns the tensor [num_rows, width] that shares memory with `body`.

    Raises:
        CallError: `invalid_request`, when the body's size is not what the header says.
    """
    dtype = _FROM_WIRE.get(rows.dtype)
    if dtype is None:
        raise CallError("invalid_request", f"rows have dtype {rows.dtype}; allowed: {sorted(_FROM_WIRE)}")
    num_rows, width = rows.num_rows, rows.width
    expected = num_rows * width * dtype.itemsize
    if len(body) != expected:
        raise CallError("invalid_request", f"a body has {len(body)} bytes; its header describes {expected}")
    if not expected:
        return torch.empty(num_rows, width, dtype=dtype)
    return torch.frombuffer(body, dtype=dtype).view(num_rows, width)


def read_answer(header: Header, body: Body) -> Tensor | CallError:
    """Returns what a call was answered with: rows, or why it was not done."""
    if header.WhichOneof("kind") == "failure":
        return CallError(header.failure.code, header.failure.message)
    try:
        return body_to_rows(header.rows, body)
    except CallError as error:
        return error
