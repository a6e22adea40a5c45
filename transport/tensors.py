"""Rows as bytes and back, without copies where the device allows it. T rows, D elements each."""

import numpy as np
import torch
from torch import Tensor

from protos.dispatch_pb2 import BFLOAT16, FLOAT32, FLOAT64, Dtype, Rows
from transport.errors import CallError
from transport.frames import Body

_TO_WIRE: dict[torch.dtype, Dtype] = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float64: FLOAT64}
_FROM_WIRE: dict[Dtype, torch.dtype] = {wire: dtype for dtype, wire in _TO_WIRE.items()}


def describe_rows(rows_TD: Tensor) -> Rows:
    """Returns the header part that describes `rows_TD`."""
    return Rows(dtype=_TO_WIRE[rows_TD.dtype], num_rows=rows_TD.shape[0], width=rows_TD.shape[1])


def rows_to_body(rows_TD: Tensor) -> Body:
    """Returns the bytes of `rows_TD`: a view where it is contiguous and on the CPU."""
    if not rows_TD.numel():
        return np.empty(0, np.uint8)
    return rows_TD.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def body_to_rows(rows: Rows, body: Body) -> Tensor:
    """Returns the tensor [num_rows, width] that shares memory with `body`.

    Raises:
        CallError: `invalid_request`, when the body's size is not what the header says.
    """
    dtype = _FROM_WIRE.get(rows.dtype)
    if dtype is None:
        raise CallError("invalid_request", f"rows have dtype {rows.dtype}; allowed: {sorted(_FROM_WIRE)}")
    expected = rows.num_rows * rows.width * dtype.itemsize
    if len(body) != expected:
        raise CallError("invalid_request", f"a body has {len(body)} bytes; its header describes {expected}")
    if not expected:
        return torch.empty(rows.num_rows, rows.width, dtype=dtype)
    return torch.from_numpy(body).view(dtype).view(rows.num_rows, rows.width)
