"""One expert's feed-forward network of one layer: SwiGLU (arXiv 2002.05202), as Mixtral uses it.

N rows, D model dim, F expert hidden dim (or the columns of one slice of it).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.linear import make_linear

# Of one product: it bounds the memory between the two projections, where a row is widest.
MAX_ROWS = 4096
# Of one product on a processor, in floating-point operations: after so much work an actor tells that it gets on, and a
# slow core (40 GFLOP/s) takes 5 s for it. That is 567 rows of an expert of Mixtral 8x7B, 331 of 8x22B: enough for full
# speed.
MAX_OPERATIONS = 2e11


class ExpertFFN:
    """rows_ND -> down(silu(gate(rows)) * up(rows)), [N, D].

    With a slice of the F columns, the result is that slice's share of the sum.

    Args:
        gate_up_2FD: The gate's rows (w1), then the up projection's (w3).
        down_DF: The down projection (w2).
    """

    def __init__(self, gate_up_2FD: Tensor, down_DF: Tensor) -> None:
        self._size = gate_up_2FD.shape[0] // 2
        self.max_rows = max_rows(gate_up_2FD.shape[1], self._size) if gate_up_2FD.is_cpu else MAX_ROWS
        """Of one product."""
        self._gate_up = make_linear(gate_up_2FD)
        self._down = make_linear(down_DF)

    def __call__(self, rows_ND: Tensor, on_progress: Callable[[], None] = lambda: None) -> Tensor:
        """Computes any number of rows; calls `on_progress` after each product."""
        if rows_ND.size(0) <= self.max_rows:
            output_ND = self.product(rows_ND)
            on_progress()
            return output_ND
        outputs: list[Tensor] = []
        for part_ND in rows_ND.split(self.max_rows):
            outputs.append(self.product(part_ND))
            on_progress()
        return torch.cat(outputs)

    def product(self, rows_ND: Tensor) -> Tensor:
        """Computes `max_rows` rows or fewer."""
        gate_up_N2F = self._gate_up(rows_ND)
        size = self._size  # two slices: half of what chunk takes
        return self._down(F.silu(gate_up_N2F[:, :size]).mul_(gate_up_N2F[:, size:]))


def max_rows(width: int, ffn_size: int) -> int:
    """Returns how many rows one product of a processor has at most.

    >>> max_rows(4096, 14336), max_rows(6144, 16384), max_rows(64, 96)
    (567, 331, 4096)
    """
    return max(1, min(MAX_ROWS, int(MAX_OPERATIONS / (6 * width * ffn_size))))


def column_slice(ffn_size: int, slice_index: int, num_slices: int) -> slice:
    """Returns which of the F columns a slice holds: all but the last have a multiple of 16, which vector units like.

    Raises:
        ValueError: There are fewer groups of columns than slices.
    """
    step = 16 if ffn_size >= 16 * num_slices else 1
    if ffn_size < num_slices:
        raise ValueError(f"{ffn_size} FFN columns cannot be cut in {num_slices} slices; set experts.slices lower")
    width = ffn_size // num_slices // step * step
    start = slice_index * width
    return slice(start, ffn_size if slice_index == num_slices - 1 else start + width)


# Row counts whose kernels are built before the first request: those of decoding and of short prompts.
WARM_ROWS = 64


def warm_up(ffn: ExpertFFN, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Runs once with each small row count: oneDNN builds a kernel for each, which a request would else wait for."""
    for num_rows in range(1, WARM_ROWS + 1):
        ffn(torch.zeros(num_rows, width, dtype=dtype, device=device))
