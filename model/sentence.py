"""Sentence-level routing: what the gate sees of a row is the mean of its sequence's first rows.

Pure; training uses it too.
Position t sees the mean over positions 0 to min(t, N - 1), N being `Routing.positions`: nothing looks ahead, and from
position N - 1 on a sequence keeps its choice. Packed rows are cut in runs: neighbouring rows of one sequence, in order.
Of what came before a run, in an earlier step, only the sum of the counted rows (positions below N) is needed.

T rows, D model dim, R runs.

Worked example, N = 3: a sequence's first two rows, then a chunk of another one, of which two positions came before.
    row        0    1            2              3      4
    run        0    0            1              1      1
    position   0    1            2              3      4
    counted    yes  yes          yes            no     no
    source     0    1            2              2      2      the row that has the sum of all counted ones so far
    divisor    1    2            3              3      3
    mean       x0   (x0+x1)/2    (carried+x2)/3, three times
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]

# Sums in float64 do not show how a sequence was cut in chunks: rounded to the rows' dtype, the means are the same.
SUM_DTYPE = torch.float64


@dataclass(frozen=True, slots=True)
class Runs:
    """How packed rows are cut in runs: made once for a step, used by every layer.

    Args:
        run_T: Each row's run; None: each row is a run of its own.
        ends_R: Each run's last row; None: as above.
        begun_R1: Whether there were positions before the run; None: in no run.
        counted_T1: Whether the row counts; None: all do.
        passes: Shifts 1, 2, 4, ... and for each the rows whose run has begun so many rows before: after a pass of
            shift s a row has the sum of the last 2s rows of its run. Empty: no run has two rows that count.
        source_T: The row that has the sum of all counted rows so far; None: each row itself.
        divisor_T1: How many positions a row's mean is over.
        any_counted: Whether any row counts.
    """

    run_T: Tensor | None
    ends_R: Tensor | None
    begun_R1: Tensor | None
    counted_T1: Tensor | None
    passes: tuple[tuple[int, Tensor], ...]
    source_T: Tensor | None
    divisor_T1: Tensor
    any_counted: bool


def make_runs(firsts_R: Ints, counts_R: Ints, num_positions: int, device: torch.device) -> Runs:
    """Returns the runs of packed rows.

    Args:
        firsts_R: The position of each run's first row.
        counts_R: Rows of each run, at least one; there need not be a run.
        num_positions: `Routing.positions`.
    """
    ends_R = counts_R.cumsum()
    run_T = np.repeat(np.arange(len(counts_R)), counts_R)
    offset_T = np.arange(len(run_T)) - (ends_R - counts_R)[run_T]
    position_T = firsts_R[run_T] + offset_T
    num_counted_R = np.clip(num_positions - firsts_R, 0, counts_R)
    most_counted = int(num_counted_R.max(initial=0))
    source_T = np.arange(len(run_T)) - np.maximum(offset_T - np.maximum(num_counted_R - 1, 0)[run_T], 0)
    single = len(run_T) == len(counts_R)
    counted_T = position_T < num_positions
    begun_R = firsts_R > 0

    def put(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Runs(
        run_T=None if single else put(run_T),
        ends_R=None if single else put(ends_R - 1),
        begun_R1=put(begun_R[:, None]) if begun_R.any() else None,
        counted_T1=None if counted_T.all() else put(counted_T[:, None]),
        passes=tuple((shift, put(offset_T[:, None] >= shift)) for shift in _powers_of_two(most_counted)),
        source_T=None if single else put(source_T),
        divisor_T1=put(np.minimum(position_T, num_positions - 1)[:, None] + 1),
        any_counted=most_counted > 0 or not len(counts_R),
    )


def runs_of_positions(positions_T: Tensor, num_positions: int) -> Runs:
    """Returns the runs of whole sequences, packed one after the other: each begins where the position is 0."""
    positions = positions_T.cpu().numpy()
    starts_R = np.flatnonzero(positions == 0)
    counts_R = np.diff(starts_R, append=len(positions))
    firsts_R = np.zeros_like(counts_R)
    expected_T = np.arange(len(positions)) - np.repeat(starts_R, counts_R) if len(starts_R) else positions[:0]
    assert np.array_equal(positions, expected_T), "positions are to count from 0 in each sequence"
    return make_runs(firsts_R, counts_R, num_positions, positions_T.device)


def sentence_means(rows_TD: Tensor, runs: Runs, carried_RD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns what the gate sees of each row, and what to carry to the sequences' next runs.

    Args:
        carried_RD: The second result for the rows before each run; read only of runs that do not begin their
            sequence, and needed if there are any.

    Returns:
        means_TD in the rows' dtype, and the sums of each sequence's counted rows so far, [R, D] in SUM_DTYPE.
    """
    totals_TD = _sums_within_runs(rows_TD.to(SUM_DTYPE), runs) if runs.any_counted else None
    if runs.begun_R1 is not None:
        assert carried_RD is not None, "a run goes on from earlier rows, whose sum is needed"
        # A sequence that begins finds another one's sum in its place, perhaps not even a number.
        before_RD = carried_RD.where(runs.begun_R1, 0.0)
        before_TD = before_RD if runs.run_T is None else before_RD.index_select(0, runs.run_T)
        totals_TD = before_TD if totals_TD is None else totals_TD + before_TD
    assert totals_TD is not None, "where no row counts, each run goes on from earlier ones"
    means_TD = (totals_TD / runs.divisor_T1).to(rows_TD.dtype)
    return means_TD, totals_TD if runs.ends_R is None else totals_TD.index_select(0, runs.ends_R)


def _sums_within_runs(rows_TD: Tensor, runs: Runs) -> Tensor:
    """Returns for each row the sum of the counted rows of its run up to it.

    In passes that double what a row has, not as differences of one long sum: a sequence whose rows are no numbers
    (NaN) spoils no other.
    """
    sums_TD = rows_TD if runs.counted_T1 is None else rows_TD.where(runs.counted_T1, 0.0)
    for shift, reaches_T1 in runs.passes:
        sums_TD = sums_TD + sums_TD.roll(shift, 0).where(reaches_T1, 0.0)
    return sums_TD if runs.source_T is None else sums_TD.index_select(0, runs.source_T)


def _powers_of_two(stop: int) -> list[int]:
    """Returns 1, 2, 4, ... below `stop`."""
    return [1 << bit for bit in range(max(0, stop - 1).bit_length())]
