"""One random draw per row, by inverting the cumulative distribution at a given number in [0, 1).

Legend: R rows, V vocabulary, N blocks of a row, L tokens of a block, M candidates.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention.vocabulary import BLOCK, BlockedLogits, Candidates, Floats, Ints, in_blocks

Doubles: TypeAlias = npt.NDArray[np.float64]

FAILED = -1  # in place of a token id where a row has no finite largest logit
BELOW_ONE = 1.0 - 2.0**-40
SLACK = 1e-4  # floors are lowered by this share, so that rounding can only admit a candidate too many


@dataclass(frozen=True)
class Filters:
    """Which tokens of a row may be drawn; each array is [R]. Off: top_k >= V, top_p = 1, min_p = 0."""

    temperature_R: Doubles
    top_k_R: Ints
    top_p_R: Doubles
    min_p_R: Doubles

    def needs_total(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Rows whose top-p is over the whole vocabulary: only these need the sum of all of its probabilities."""
        return (self.top_p_R < 1) & (self.top_k_R >= vocab_size) & (self.min_p_R <= 0)


def draw_unfiltered(logits_RV: Tensor, temperature_R1: Tensor | None, uniform_R: Doubles) -> Ints:
    """Draws a token id for each row of float32 logits [R, V] from all of its tokens (None: every temperature is 1).

    First a block is drawn, then a token in it: a sum per block is cheaper and rounds less than a running sum over V.
    """
    scaled_RV = logits_RV if temperature_R1 is None else logits_RV / temperature_R1
    blocks_RNL = in_blocks(torch.softmax(scaled_RV, dim=-1), 0.0)
    cumulative_RN = blocks_RNL.sum(dim=-1).double().cumsum(dim=-1)
    total_R1 = cumulative_RN[:, -1:]
    target_R1 = torch.from_numpy(uniform_R).to(logits_RV.device)[:, None] * total_R1
    block_R1 = (cumulative_RN <= target_R1).sum(dim=-1, keepdim=True).clamp(max=cumulative_RN.shape[1] - 1)
    before_R1 = torch.where(block_R1 > 0, cumulative_RN.gather(1, (block_R1 - 1).clamp(min=0)), 0.0)
    fraction_R1 = (target_R1 - before_R1) / (cumulative_RN.gather(1, block_R1) - before_R1)
    chosen_R1L = blocks_RNL.gather(1, block_R1[:, :, None].expand(-1, -1, BLOCK))
    cumulative_RL = chosen_R1L[:, 0].double().cumsum(dim=-1)
    inner_target_R1 = fraction_R1.clamp(max=BELOW_ONE) * cumulative_RL[:, -1:]
    within_R1 = (cumulative_RL <= inner_target_R1).sum(dim=-1, keepdim=True)
    ids_R1 = torch.where(torch.isfinite(total_R1), block_R1 * BLOCK + within_R1, FAILED)
    return ids_R1[:, 0].cpu().numpy()


def draw_filtered(logits_RV: Tensor, filters: Filters, uniform_R: Doubles) -> Ints:
    """Draws a token id for each row of float32 logits [R, V] from what min-p, then top-k, then top-p leave."""
    blocked = BlockedLogits.of(logits_RV)
    best_R = blocked.maxima_RN.max(axis=-1).astype(np.float64)
    totals_R = _totals(logits_RV, filters)
    with np.errstate(invalid="ignore"):  # rows that hold a NaN or an infinity are marked below
        candidates = blocked.reaching(_floors(blocked, best_R, totals_R, filters))
        weights_RM = _kept_weights(candidates, best_R, totals_R, filters)
        cumulative_RM = weights_RM.cumsum(axis=-1)
        target_R1 = (uniform_R * BELOW_ONE)[:, None] * cumulative_RM[:, -1:]
        chosen_R = (cumulative_RM <= target_R1).sum(axis=-1)
    chosen_R = np.minimum(chosen_R, weights_RM.shape[1] - 1)
    ids_R = candidates.ids_RM[np.arange(len(chosen_R)), chosen_R]
    return np.where(np.isfinite(best_R), ids_R, FAILED)


def _totals(logits_RV: Tensor, filters: Filters) -> Doubles:
    """Sum of all weights of each row that needs it, where the best token weighs 1; else infinity."""
    totals_R = np.full(len(filters.top_p_R), np.inf)
    rows = np.flatnonzero(filters.needs_total(logits_RV.shape[1]))
    if len(rows):
        index = torch.from_numpy(rows).to(logits_RV.device)
        temperature_R1 = torch.from_numpy(filters.temperature_R[rows, None].astype(np.float32)).to(logits_RV.device)
        chosen_RV = logits_RV if len(rows) == len(totals_R) else logits_RV.index_select(0, index)
        # The best token's probability is 1 / total; softmax is the fastest pass there is (half of logsumexp's time).
        totals_R[rows] = 1.0 / torch.softmax(chosen_RV / temperature_R1, dim=-1).amax(dim=-1).double().cpu().numpy()
    return totals_R


def _floors(blocked: BlockedLogits, best_R: Doubles, totals_R: Doubles, filters: Filters) -> Floats:
    """For each row a logit that every token which may be drawn reaches.

    Of V tokens, those lighter than (1 - p) * total / V weigh less than (1 - p) * total together, so none of them is
    in the nucleus. With min-p a token must weigh min_p, where the best weighs 1.
    """
    vocab_size = blocked.logits_RV.shape[1]
    nucleus_R = np.where(np.isfinite(totals_R), (1.0 - filters.top_p_R) * totals_R / vocab_size, 0.0)
    lightest_R = np.maximum(nucleus_R, filters.min_p_R) * (1.0 - SLACK)
    with np.errstate(divide="ignore"):
        floors_R = best_R + filters.temperature_R * np.log(lightest_R)
    floors_R = (floors_R - SLACK * np.abs(floors_R)).astype(np.float32)
    rows = np.flatnonzero(filters.top_k_R < vocab_size)
    if len(rows):
        kth_R = blocked.kth_floors(np.where(filters.top_k_R < vocab_size, filters.top_k_R, 1))
        floors_R[rows] = np.maximum(floors_R[rows], kth_R[rows])
    return floors_R


def _kept_weights(candidates: Candidates, best_R: Doubles, totals_R: Doubles, filters: Filters) -> Doubles:
    """Weights of the candidates [R, M], the best weighing 1; 0 for those that min-p, top-k or top-p remove."""
    values_RM = candidates.values_RM.astype(np.float64)
    weights_RM = np.exp((values_RM - best_R[:, None]) / filters.temperature_R[:, None])
    weights_RM[weights_RM < filters.min_p_R[:, None]] = 0.0
    weights_RM[np.arange(values_RM.shape[1]) >= filters.top_k_R[:, None]] = 0.0
    if (filters.top_p_R < 1).any():
        cumulative_RM = weights_RM.cumsum(axis=-1)
        total_R = np.where(np.isfinite(totals_R), totals_R, cumulative_RM[:, -1])
        allowed_R = np.where(filters.top_p_R < 1, filters.top_p_R * total_R, np.inf)
        # A token stays while those before it have not yet reached p; the first one therefore always stays.
        weights_RM[cumulative_RM - weights_RM >= allowed_R[:, None]] = 0.0
    return weights_RM
