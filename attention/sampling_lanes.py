"""The sampling parameters of every sequence, by lane, and what of them is the same at each step of one batch.

Legend: L lanes, B rows of the batch, R rows of a group, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention.bad_words import Tails
from attention.drawing import Filters
from attention.masks import BatchMasks, LaneMasks, masks_of
from attention.penalties import BatchEdits, LaneEdits, edits_of
from attention.randomness import Words, stream_state
from protos.generation_pb2 import Sampling

Ints: TypeAlias = npt.NDArray[np.int64]

COLDEST = 1e-5  # a lower temperature is greedy: dividing by it could overflow
NO_LOGPROBS = -1


@dataclass(frozen=True)
class Group:
    """The rows of a batch that draw the same way; `rows_R` is None when they are all of the batch's rows."""

    rows_R: Ints | None
    states_R: Words
    filters: Filters
    temperature_R1: Tensor | None  # on the device; None: every one is 1

    def select(self, logits_BV: Tensor) -> Tensor:
        """The group's rows, float32 [R, V]."""
        return select_rows(logits_BV, self.rows_R).float()


@dataclass(frozen=True)
class Batch:
    """What one list of lanes has in common over its steps. None: no row does so."""

    lanes_B: Ints
    greedy_rows: Ints | None  # None: every row is greedy
    unfiltered: Group | None
    filtered: Group | None
    edits: BatchEdits | None
    masks: BatchMasks | None
    num_logprobs: dict[int, int]  # row -> number of alternatives; only rows that asked
    logprob_ids: dict[int, Ints]  # row -> the alternatives; only rows that named theirs


class SamplingLanes:
    """Sampling parameters in arrays indexed by lane, so that a batch gathers its own in one step."""

    def __init__(
        self, vocab_size: int, max_sequences: int, eos_token_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._live_L = np.zeros(max_sequences, dtype=np.bool_)
        self.positions_L: Ints = np.zeros(max_sequences, dtype=np.int64)  # number of outputs so far
        self._temperature_L = np.zeros(max_sequences, dtype=np.float64)
        self._top_k_L = np.zeros(max_sequences, dtype=np.int64)
        self._top_p_L = np.ones(max_sequences, dtype=np.float64)
        self._min_p_L = np.zeros(max_sequences, dtype=np.float64)
        self._states_L: Words = np.zeros(max_sequences, dtype=np.uint64)
        self._num_logprobs_L = np.full(max_sequences, NO_LOGPROBS, dtype=np.int64)
        self._edits: dict[int, LaneEdits] = {}
        self._masks: dict[int, LaneMasks] = {}
        self._logprob_ids: dict[int, Ints] = {}
        self._tails = Tails(max_sequences)

    def add(self, lane: int, sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Fills a free lane."""
        assert not self._live_L[lane], f"lane {lane} is taken"
        only_best = (sampling.HasField("top_k") and sampling.top_k == 1) or (
            sampling.HasField("top_p") and sampling.top_p == 0
        )
        greedy = sampling.temperature < COLDEST or only_best
        self._live_L[lane] = True
        self.positions_L[lane] = len(output_ids)
        self._temperature_L[lane] = 0.0 if greedy else sampling.temperature
        self._top_k_L[lane] = min(sampling.top_k, self._vocab_size) if sampling.HasField("top_k") else self._vocab_size
        self._top_p_L[lane] = sampling.top_p if sampling.HasField("top_p") else 1.0
        self._min_p_L[lane] = sampling.min_p
        self._states_L[lane] = stream_state(sampling.seed)
        self._num_logprobs_L[lane] = sampling.logprobs if sampling.HasField("logprobs") else NO_LOGPROBS
        edits = edits_of(sampling, prompt_ids, output_ids, self._eos_token_ids)
        if edits is not None:
            self._edits[lane] = edits
        masks = masks_of(sampling)
        if masks is not None:
            self._masks[lane] = masks
            self._tails.start(lane, output_ids)
        if sampling.logprob_token_ids:
            self._logprob_ids[lane] = np.array(sampling.logprob_token_ids, dtype=np.int64)

    def remove(self, lane: int) -> None:
        """Frees a lane."""
        assert self._live_L[lane], f"lane {lane} is free"
        self._live_L[lane] = False
        for kept in (self._edits, self._masks, self._logprob_ids):
            kept.pop(lane, None)

    def batch(self, lanes: Sequence[int]) -> Batch:
        """Everything about a list of distinct live lanes that does not change from step to step."""
        lanes_B = np.array(lanes, dtype=np.int64)
        assert len(set(lanes)) == len(lanes), f"a lane is listed twice: {lanes}"
        assert self._live_L[lanes_B].all(), f"a free lane is listed: {lanes}"
        greedy_B = self._temperature_L[lanes_B] == 0.0
        truncated_B = self._top_k_L[lanes_B] < self._vocab_size
        truncated_B |= (self._top_p_L[lanes_B] < 1.0) | (self._min_p_L[lanes_B] > 0.0)
        logprob_rows = np.flatnonzero(self._num_logprobs_L[lanes_B] != NO_LOGPROBS).tolist()
        edits_by_row = {row: self._edits[lane] for row, lane in enumerate(lanes) if lane in self._edits}
        masks_by_row = {row: self._masks[lane] for row, lane in enumerate(lanes) if lane in self._masks}
        return Batch(
            lanes_B=lanes_B,
            greedy_rows=None if greedy_B.all() else np.flatnonzero(greedy_B),
            unfiltered=self._group(lanes_B, ~greedy_B & ~truncated_B),
            filtered=self._group(lanes_B, ~greedy_B & truncated_B),
            edits=BatchEdits(edits_by_row, self._vocab_size) if edits_by_row else None,
            masks=BatchMasks(masks_by_row, lanes_B, self._vocab_size, self._tails) if masks_by_row else None,
            num_logprobs={row: int(self._num_logprobs_L[lanes[row]]) for row in logprob_rows},
            logprob_ids={row: self._logprob_ids[lanes[row]] for row in logprob_rows if lanes[row] in self._logprob_ids},
        )

    def _group(self, lanes_B: Ints, chosen_B: npt.NDArray[np.bool_]) -> Group | None:
        if not chosen_B.any():
            return None
        lanes_R = lanes_B[chosen_B]
        temperature_R = self._temperature_L[lanes_R]
        temperature_R1 = torch.from_numpy(temperature_R[:, None].astype(np.float32)).to(self._device)
        return Group(
            rows_R=None if chosen_B.all() else np.flatnonzero(chosen_B),
            states_R=self._states_L[lanes_R],
            filters=Filters(temperature_R, self._top_k_L[lanes_R], self._top_p_L[lanes_R], self._min_p_L[lanes_R]),
            temperature_R1=None if (temperature_R == 1.0).all() else temperature_R1,
        )


def select_rows(logits_BV: Tensor, rows_R: Ints | None) -> Tensor:
    """Some rows of the logits [R, V], in their own type; None selects all, without a copy."""
    if rows_R is None:
        return logits_BV
    return logits_BV.index_select(0, torch.from_numpy(rows_R).to(logits_BV.device))
