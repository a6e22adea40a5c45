"""One random draw per row, by inverting the cumulative distribution at a given number in [0, 1).

Whole rows are touched on the device; what is left of them (sums of blocks, or a few candidates) is decided in NumPy on
the host.
Legend: R rows, V vocabulary, N blocks of a row, L tokens of a block, M candidates, I hits, P pending rows, W wide ones.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention.vocabulary import BLOCK, BlockedLogits, Floats, Ints, in_blocks

Doubles: TypeAlias = npt.NDArray[np.float64]

FAILED = -1  # in place of a token id where a row has no finite largest logit
BELOW_ONE = 1.0 - 2.0**-40
SORTED_TOGETHER = 1 << 17  # logits: what is made of so many, in float64, stays in the caches
SLACK = 1e-4  # floors are lowered by this share, so that rounding can only admit a candidate too many


class Workspace:
    """Two buffers of float32 rows, kept between steps: fresh ones of this size cost a page fault every 4 KB."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._buffers_2RV = torch.empty((2, 0, vocab_size), device=device)

    def softmax(self, logits_RV: Tensor, temperature_R1: Tensor | None) -> Tensor:
        """Probabilities at the given temperatures (None: every one is 1); valid until the next call."""
        num_rows, vocab_size = logits_RV.shape
        if self._buffers_2RV.shape[1] < num_rows:
            self._buffers_2RV = logits_RV.new_empty((2, num_rows, vocab_size))
        scaled_RV, probabilities_RV = self._buffers_2RV[:, :num_rows]
        if temperature_R1 is None:
            scaled_RV = logits_RV
        else:
            torch.div(logits_RV, temperature_R1, out=scaled_RV)
        return torch.softmax(scaled_RV, dim=-1, out=probabilities_RV)


@dataclass(frozen=True)
class Filters:
    """Which tokens of a row may be drawn; each array is [R]. Off: top_k >= V, top_p = 1, min_p = 0."""

    temperature_R: Doubles
    top_k_R: Ints
    top_p_R: Doubles
    min_p_R: Doubles

    def needs_total(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Rows whose top-p is over the whole vocabulary: only these need the sum of all of its weights."""
        return (self.top_p_R < 1) & (self.top_k_R >= vocab_size) & (self.min_p_R <= 0)

    def take(self, rows: Ints) -> "Filters":
        """Those of some rows."""
        return Filters(self.temperature_R[rows], self.top_k_R[rows], self.top_p_R[rows], self.min_p_R[rows])


def draw_unfiltered(logits_RV: Tensor, temperature_R1: Tensor | None, uniform_R: Doubles, workspace: Workspace) -> Ints:
    """Draws a token id for each row of float32 logits [R, V] from all of its tokens (None: every temperature is 1).

    First a block is drawn, then a token in it: a sum per block is cheaper and rounds less than a running sum over V.
    """
    blocks_RNL = in_blocks(workspace.softmax(logits_RV, temperature_R1), 0.0)
    num_rows, num_blocks, _ = blocks_RNL.shape
    rows_R = np.arange(num_rows)
    cumulative_RN = blocks_RNL.sum(dim=-1).cpu().numpy().cumsum(axis=-1, dtype=np.float64)
    target_R = uniform_R * cumulative_RN[:, -1]
    block_R = _first_above(cumulative_RN, target_R)
    before_R = np.where(block_R > 0, cumulative_RN[rows_R, block_R - 1], 0.0)
    fraction_R = (target_R - before_R) / (cumulative_RN[rows_R, block_R] - before_R)
    index_R = torch.from_numpy(rows_R * num_blocks + block_R).to(blocks_RNL.device)
    chosen_RL = blocks_RNL.reshape(num_rows * num_blocks, BLOCK).index_select(0, index_R).cpu().numpy()
    cumulative_RL = chosen_RL.cumsum(axis=-1, dtype=np.float64)
    within_R = _first_above(cumulative_RL, np.minimum(fraction_R, BELOW_ONE) * cumulative_RL[:, -1])
    return np.where(np.isfinite(cumulative_RN[:, -1]), block_R * BLOCK + within_R, FAILED)


def draw_filtered(logits_RV: Tensor, filters: Filters, uniform_R: Doubles, workspace: Workspace) -> Ints:
    """Draws a token id for each row of float32 logits [R, V] from what min-p, then top-k, then top-p leave."""
    blocked = BlockedLogits.of(logits_RV)
    best_R = blocked.maxima_RN.max(axis=-1).astype(np.float64)
    totals_R = _totals(logits_RV, filters, workspace)
    ids_R = np.full(len(best_R), FAILED, dtype=np.int64)
    pending = np.flatnonzero(np.isfinite(best_R))
    for floors_R in _rungs(blocked, _floors(blocked, best_R, totals_R, filters), totals_R > 0):
        many_P = blocked.many_reach(floors_R[pending], pending)
        if many_P.any():
            for rows in _together(pending[many_P], logits_RV.shape[1]):
                given = best_R[rows], totals_R[rows], filters.take(rows), uniform_R[rows]
                ids_R[rows] = _draw_sorted(blocked.rows(rows), *given)
            pending = pending[~many_P]
        if not len(pending):
            break
        candidates = blocked.reaching(floors_R[pending], pending)
        weights_RM, enough_P = _kept_weights(
            candidates.values_RM, best_R[pending], totals_R[pending], filters.take(pending)
        )
        # The id of a row without enough candidates is drawn again.
        ids_R[pending] = candidates.ids_RM[np.arange(len(pending)), _chosen(weights_RM, uniform_R[pending])]
        pending = pending[~enough_P]
    return ids_R


def _draw_sorted(logits_WV: Floats, best_W: Doubles, totals_W: Doubles, filters: Filters, uniform_W: Doubles) -> Ints:
    """Draws what listing candidates would, [W]; `filters` are those of these rows.

    All of a row's logits are sorted, without their ids, which sorts ten times as fast: the id of the one that is drawn
    is found by its logit and by how many equal ones come before it.
    """
    rows_W = np.arange(len(logits_WV))
    sorted_WV = -np.sort(-logits_WV, axis=-1)
    weights_WV, _ = _kept_weights(sorted_WV, best_W, totals_W, filters)
    chosen_W = _chosen(weights_WV, uniform_W)
    drawn_W1 = sorted_WV[rows_W, chosen_W][:, None]
    before_W = chosen_W - np.count_nonzero(sorted_WV > drawn_W1, axis=-1)
    lines_I, equal_I = np.nonzero(logits_WV == drawn_W1)
    return equal_I[np.searchsorted(lines_I, rows_W) + before_W]


def _together(rows: Ints, vocab_size: int) -> list[Ints]:
    """The rows in groups that are sorted together."""
    size = max(1, SORTED_TOGETHER // vocab_size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _chosen(weights_RM: Doubles, uniform_R: Doubles) -> Ints:
    cumulative_RM = weights_RM.cumsum(axis=-1)
    return _first_above(cumulative_RM, uniform_R * BELOW_ONE * cumulative_RM[:, -1])


def _first_above(cumulative_RM: Doubles, target_R: Doubles) -> Ints:
    """Index of each row's first entry above its target: never one that adds nothing, as its predecessor is as large."""
    return np.minimum((cumulative_RM <= target_R[:, None]).sum(axis=-1), cumulative_RM.shape[1] - 1)


def _totals(logits_RV: Tensor, filters: Filters, workspace: Workspace) -> Doubles:
    """Sum of all weights of each row that needs it, where the best token weighs 1; else 0."""
    totals_R = np.zeros(len(filters.top_p_R))
    rows = np.flatnonzero(filters.needs_total(logits_RV.shape[1]))
    if len(rows):
        index = torch.from_numpy(rows).to(logits_RV.device)
        temperature_R1 = torch.from_numpy(filters.temperature_R[rows, None].astype(np.float32)).to(logits_RV.device)
        chosen_RV = logits_RV if len(rows) == len(totals_R) else logits_RV.index_select(0, index)
        # The best token's probability is 1 / total; softmax is the fastest pass there is (half of logsumexp's time).
        totals_R[rows] = 1.0 / workspace.softmax(chosen_RV, temperature_R1).amax(dim=-1).double().cpu().numpy()
    return totals_R


def _floors(blocked: BlockedLogits, best_R: Doubles, totals_R: Doubles, filters: Filters) -> Floats:
    """For each row a logit that every token which may be drawn reaches.

    Of V tokens, those lighter than (1 - p) * total / V weigh less than (1 - p) * total together, so none of them is
    in the nucleus. With min-p a token must weigh min_p, where the best weighs 1.
    """
    vocab_size = blocked.logits_RV.shape[1]
    nucleus_R = (1.0 - filters.top_p_R) * totals_R / vocab_size
    lightest_R = np.maximum(nucleus_R, filters.min_p_R) * (1.0 - SLACK)
    # log(0), or beyond float32: no floor; rows that are not finite.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        floors_R = best_R + filters.temperature_R * np.log(lightest_R)
        floors_R = (floors_R - SLACK * np.abs(floors_R)).astype(np.float32)
    rows = np.flatnonzero(filters.top_k_R < vocab_size)
    if len(rows):
        kth_R = blocked.kth_floors(np.where(filters.top_k_R < vocab_size, filters.top_k_R, 1))
        floors_R[rows] = np.maximum(floors_R[rows], kth_R[rows])
    return floors_R


def _rungs(blocked: BlockedLogits, floors_R: Floats, needs_total_R: npt.NDArray[np.bool_]) -> list[Floats]:
    """Floors to try, highest first. The floor of a top-p over the vocabulary is a safe one, and thousands of tokens may
    reach it, where most often a few dozen hold p already: their sum tells whether a lower rung must be tried. Of 32000
    independent logits about 70 reach the 64th largest maximum of their 500 blocks, 350 the median, 3000 the smallest.
    """
    if not needs_total_R.any():
        return [floors_R]
    sorted_RN = -np.sort(-blocked.maxima_RN, axis=-1)
    num_blocks = sorted_RN.shape[1]
    tries = [sorted_RN[:, rank] for rank in sorted({min(64, num_blocks // 2), num_blocks // 2, num_blocks - 1})]
    return [*(np.where(needs_total_R, np.maximum(floors_R, higher_R), floors_R) for higher_R in tries), floors_R]


def _kept_weights(
    logits_RM: Floats, best_R: Doubles, totals_R: Doubles, filters: Filters
) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Weights of logits [R, M] that are sorted, the best weighing 1; 0 for those that min-p, top-k or top-p remove.

    Also tells of each row whether it holds all that may be drawn; if not, its candidates weigh less than p together.
    """
    values_RM = logits_RM.astype(np.float64)
    weights_RM = np.exp((values_RM - best_R[:, None]) / filters.temperature_R[:, None])
    weights_RM[weights_RM < filters.min_p_R[:, None]] = 0.0
    weights_RM[np.arange(values_RM.shape[1]) >= filters.top_k_R[:, None]] = 0.0
    enough_R = np.ones(len(best_R), dtype=np.bool_)
    if (filters.top_p_R < 1).any():
        cumulative_RM = weights_RM.cumsum(axis=-1)
        total_R = np.where(totals_R > 0, totals_R, cumulative_RM[:, -1])
        allowed_R = np.where(filters.top_p_R < 1, filters.top_p_R * total_R, np.inf)
        # A token stays while those before it have not yet reached p; the first one therefore always stays.
        weights_RM[cumulative_RM - weights_RM >= allowed_R[:, None]] = 0.0
        enough_R = (totals_R == 0) | (cumulative_RM[:, -1] >= allowed_R)
    return weights_RM, enough_R
