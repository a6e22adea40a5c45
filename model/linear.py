"""Linear layers for few rows and large weights: a small registry of kernels, chosen by device and dtype.

N rows, I inputs, O outputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]


def plain_linear(weight_OI: Tensor) -> Linear:
    """The fallback that every device and build has."""
    return lambda rows_NI: F.linear(rows_NI, weight_OI)


# oneDNN reads a large weight a fifth slower for 1 to 3 rows than for 4; for a smaller one, padding takes longer than
# it saves (measured: docs/performance.md).
PADDED_ROWS = 4
PADDING_PAYS_ELEMENTS = 7 << 18


def prepacked_linear(weight_OI: Tensor, *, copy_small: bool = False) -> Linear:
    """oneDNN with weights in its own blocked layout: reads 1.4 to 1.9 times as fast as F.linear at 1 to 16 rows.

    Args:
        copy_small: See `make_linear`.
    """
    packed = _prepacked(weight_OI)
    if weight_OI.numel() >= PADDING_PAYS_ELEMENTS:
        return _padded(packed)
    # Whoever has switched oneDNN off is not to find it on again.
    onednn_is_on = torch._C._get_mkldnn_enabled()  # pyright: ignore[reportPrivateUsage]
    return _row_without_onednn(packed, weight_OI) if copy_small and onednn_is_on else packed


def _row_without_onednn(linear: Linear, weight_OI: Tensor) -> Linear:
    """Takes a single row through torch's own product, with a copy of the weight as it was (3.5 MB at most).

    Between two layers of a lone sequence the caches hold neither oneDNN's code nor its plans: setting up costs it
    100 µs, more than it saves on a weight as small as this (docs/performance.md).
    """
    columns_IO = weight_OI.clone().t()
    allow_onednn = torch._C._set_mkldnn_enabled  # pyright: ignore[reportPrivateUsage]

    def run(rows_NI: Tensor) -> Tensor:
        if rows_NI.shape[0] != 1:
            return linear(rows_NI)
        allow_onednn(False)  # of the whole process: another thread that computes meanwhile may take longer
        try:
            return rows_NI.mm(columns_IO)
        finally:
            allow_onednn(True)

    return run


def _padded(linear: Linear) -> Linear:
    def run(rows_NI: Tensor) -> Tensor:
        num_rows = rows_NI.shape[0]
        if num_rows >= PADDED_ROWS:
            return linear(rows_NI)
        if num_rows == 1:
            return linear(rows_NI.expand(PADDED_ROWS, -1))[:1]
        padded = rows_NI.new_zeros(PADDED_ROWS, rows_NI.shape[1])
        padded[:num_rows] = rows_NI
        return linear(padded)[:num_rows]

    return run


def _prepacked(weight_OI: Tensor) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 1)  # pyright: ignore[reportPrivateUsage]
    pointwise = torch.ops.mkldnn._linear_pointwise  # pyright: ignore[reportPrivateUsage]
    no_scalars: list[float] = []
    return lambda rows_NI: pointwise(rows_NI, packed, None, "none", no_scalars, "")


def can_prepack(weight_OI: Tensor) -> bool:
    """Whether oneDNN can hold this weight prepacked: bf16, on a CPU and a torch build that support it."""
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # pyright: ignore[reportPrivateUsage]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def make_linear(weight_OI: Tensor, *, copy_small: bool = False) -> Linear:
    """Returns rows_NI -> rows_NI @ weight_OI.T by the fastest kernel for it; the weight may be freed afterwards.

    Args:
        copy_small: Keep a small weight (3.5 MB at most) twice, which makes single rows faster between two visits to
            the experts. For the few weights that every row passes, not for the many experts.
    """
    return prepacked_linear(weight_OI, copy_small=copy_small) if can_prepack(weight_OI) else plain_linear(weight_OI)
