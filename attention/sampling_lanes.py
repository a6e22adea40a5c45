"""The sampling parameters of every sequence, by lane, and what of them is the same at each step of one batch.

Legend: L lanes, B rows of the batch, R rows of a group, E edited rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from attention.bad_words import Tails
from attention.drawing import Filters
from attention.draws import DRAWN_SHARE, GREEDY_SHARE, Draws, EditedRows, Group, Rows
from attention.masks import BatchMasks, LaneMasks, masks_of
from attention.penalties import BatchEdits, LaneEdits, edits_of
from attention.randomness import Words, stream_state
from protos.generation_pb2 import Sampling

Ints: TypeAlias = npt.NDArray[np.int64]

COLDEST = 1e-5  # a lower temperature is greedy: dividing by it could overflow
NO_LOGPROBS = -1


@dataclass(frozen=True)
class Batch:
    """What one list of lanes has in common over its steps.

    Args:
        plain: How the rows are drawn that are not edited; None: all are edited.
        edited: The other rows; None: there are none.
        masked_rows: Rows that forbid tokens altogether.
        num_logprobs: Row -> number of alternatives; only rows that asked.
        logprob_ids: Row -> the alternatives; only rows that named theirs.
        held_H: Lanes that are edited until `held_until_H` outputs (`min_tokens`): then another batch is to be made.
    """

    lanes_B: Ints
    plain: Draws | None
    edited: EditedRows | None
    masked_rows: frozenset[int]
    num_logprobs: dict[int, int]
    logprob_ids: dict[int, Ints]
    held_H: Ints
    held_until_H: Ints

    def outdated(self, positions_L: Ints) -> bool:
        """Whether it does not say any more what is to be done; `positions_L`: outputs so far of every lane."""
        return bool(len(self.held_H)) and bool((positions_L[self.held_H] >= self.held_until_H).any())


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
        """Everything about a list of distinct live lanes that does not change until the batch is `outdated`."""
        lanes_B = np.array(lanes, dtype=np.int64)
        assert len(set(lanes)) == len(lanes), f"a lane is listed twice: {lanes}"
        assert self._live_L[lanes_B].all(), f"a free lane is listed: {lanes}"
        edited_B = np.array([self._is_edited(lane) for lane in lanes], dtype=np.bool_)
        held_H = np.array([lane for lane in lanes if self._is_held(lane)], dtype=np.int64)
        logprob_rows = np.flatnonzero(self._num_logprobs_L[lanes_B] != NO_LOGPROBS).tolist()
        return Batch(
            lanes_B=lanes_B,
            plain=None if edited_B.all() else self._draws(lanes_B, ~edited_B),
            edited=self._edited_rows(lanes_B, edited_B) if edited_B.any() else None,
            masked_rows=frozenset(row for row, lane in enumerate(lanes) if lane in self._masks),
            num_logprobs={row: int(self._num_logprobs_L[lanes[row]]) for row in logprob_rows},
            logprob_ids={row: self._logprob_ids[lanes[row]] for row in logprob_rows if lanes[row] in self._logprob_ids},
            held_H=held_H,
            held_until_H=np.array([self._edits[lane].min_tokens for lane in held_H.tolist()], dtype=np.int64),
        )

    def _is_held(self, lane: int) -> bool:
        """Whether it may not end yet."""
        return lane in self._edits and self.positions_L[lane] < self._edits[lane].min_tokens

    def _is_edited(self, lane: int) -> bool:
        return lane in self._masks or self._is_held(lane) or (lane in self._edits and self._edits[lane].lasting)

    def _edited_rows(self, lanes_B: Ints, edited_B: npt.NDArray[np.bool_]) -> EditedRows:
        lanes_E = lanes_B[edited_B]
        lanes = list(enumerate(lanes_E.tolist()))
        edits = {row: self._edits[lane] for row, lane in lanes if lane in self._edits}
        masks = {row: self._masks[lane] for row, lane in lanes if lane in self._masks}
        held = [row for row, lane in lanes if self._is_held(lane)]
        return EditedRows(
            rows_E=None if edited_B.all() else np.flatnonzero(edited_B),
            edits=BatchEdits(edits, held, self._vocab_size) if edits else None,
            masks=BatchMasks(masks, lanes_E, self._vocab_size, self._tails) if masks else None,
            draws=self._draws(lanes_E, np.ones(len(lanes_E), dtype=np.bool_)),
        )

    def _draws(self, lanes_B: Ints, chosen_B: npt.NDArray[np.bool_]) -> Draws:
        greedy_B = self._temperature_L[lanes_B] == 0.0
        truncated_B = self._top_k_L[lanes_B] < self._vocab_size
        truncated_B |= (self._top_p_L[lanes_B] < 1.0) | (self._min_p_L[lanes_B] > 0.0)
        return Draws(
            greedy=Rows.of(chosen_B & greedy_B, GREEDY_SHARE),
            unfiltered=self._group(lanes_B, chosen_B & ~greedy_B & ~truncated_B),
            filtered=self._group(lanes_B, chosen_B & ~greedy_B & truncated_B),
        )

    def _group(self, lanes_B: Ints, chosen_B: npt.NDArray[np.bool_]) -> Group | None:
        rows = Rows.of(chosen_B, DRAWN_SHARE)
        if rows is None:
            return None
        lanes_R, chosen_R = rows.take(lanes_B), rows.take(chosen_B)
        # Others that are gone through too cost as little as can be: their best token.
        temperature_R = np.where(chosen_R, self._temperature_L[lanes_R], 1.0)
        filters = Filters(
            temperature_R,
            np.where(chosen_R, self._top_k_L[lanes_R], 1),
            np.where(chosen_R, self._top_p_L[lanes_R], 1.0),
            np.where(chosen_R, self._min_p_L[lanes_R], 0.0),
        )
        temperature_R1 = torch.from_numpy(temperature_R[:, None].astype(np.float32)).to(self._device)
        return Group(
            rows=rows,
            states_R=self._states_L[lanes_R],
            filters=filters,
            temperature_R1=None if (temperature_R == 1.0).all() else temperature_R1,
        )
