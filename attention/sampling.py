"""Chooses the next token of every sequence of a step.

The order is that of vLLM and OpenAI: logit bias, repetition, presence and frequency penalties, and whatever is
forbidden (which nothing before could undo); then the best token if the temperature is 0, else temperature, min-p,
top-k, top-p and one draw. Legend: B rows, R of them, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attention.drawing import FAILED, Workspace
from attention.draws import Ints, select_rows
from attention.logprobs import prompt_logprobs, score
from attention.sampling_lanes import Batch, SamplingLanes
from attention.sampling_limits import SamplingError, validate_sampling
from attention.vocabulary import best_tokens
from protos.generation_pb2 import Sampling, TokenLogprob

__all__ = ["Sampled", "Sampler", "SamplingError", "prompt_logprobs", "validate_sampling"]

MAX_KEPT_BATCHES = 8  # steps with a finished prompt sample other lanes than those between; each set is kept


@dataclass(frozen=True)
class Failure:
    """Why no token was drawn; `code` as in protos/generation.proto, GenerationFailure."""

    code: str
    message: str


NOT_FINITE = Failure(
    "internal",
    "the model's logits for this token have no finite largest value (a NaN, an infinity, or every token forbidden); "
    "no token was drawn",
)
FORBIDDEN = Failure("invalid_request", "allowed_token_ids, bad_words and min_tokens leave no token that could follow")


@dataclass(frozen=True)
class Sampled:
    """One step's tokens. A row in `failed` (row -> why) drew none: its token id is -1, and nothing was recorded."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprob] | None  # by row; only rows that asked, None where none did
    failed: dict[int, Failure] = field(default_factory=dict[int, Failure])


class Sampler:
    """Samples for sequences that sit in numbered lanes; each lane keeps its parameters, position and token counts."""

    def __init__(
        self, vocab_size: int, max_sequences: int, eos_token_ids: tuple[int, ...], device: torch.device
    ) -> None:
        self._lanes = SamplingLanes(vocab_size, max_sequences, eos_token_ids, device)
        self._workspace = Workspace(vocab_size, device)
        self._vocab_size = vocab_size
        self._batches: dict[tuple[int, ...], Batch] = {}

    def add(self, lane: int, sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """A sequence joins in a free lane. `sampling` was validated; `output_ids` is empty unless it resumes."""
        self._lanes.add(lane, sampling, prompt_ids, output_ids)
        self._forget(lane)

    def remove(self, lane: int) -> None:
        """A sequence leaves; its lane may be used again."""
        self._lanes.remove(lane)
        self._forget(lane)

    def sample(self, logits_BV: Tensor, lanes: Sequence[int]) -> Sampled:
        """Draws and records one token per row.

        Args:
            logits_BV: [B, V], float32 or bf16, without gradient; left unchanged.
            lanes: the lane of each row, all different.
        """
        assert logits_BV.shape == (len(lanes), self._vocab_size), f"logits {tuple(logits_BV.shape)}, {len(lanes)} lanes"
        if not lanes:
            return Sampled([], None)
        batch = self._batch(lanes)
        ids_B = self._choose(batch, logits_BV)
        token_ids: list[int] = ids_B.tolist()
        failed = _failures(batch, logits_BV, ids_B) if min(token_ids) < 0 else {}
        self._lanes.positions_L[batch.lanes_B] += ids_B != FAILED
        if batch.edited is not None:
            batch.edited.record(ids_B)
        logprobs = _logprobs(batch, logits_BV, token_ids) if batch.num_logprobs else None
        return Sampled(token_ids, logprobs, failed)

    def _choose(self, batch: Batch, logits_BV: Tensor) -> Ints:
        positions_B = self._lanes.positions_L[batch.lanes_B]
        if batch.plain is None:
            assert batch.edited is not None, "a row is edited or not"
            return batch.edited.draw(logits_BV, positions_B, self._workspace)
        ids_B = batch.plain.draw(logits_BV, positions_B, self._workspace)
        if batch.edited is not None:
            ids_B[batch.edited.rows_E] = batch.edited.draw(logits_BV, positions_B, self._workspace)
        return ids_B

    def _batch(self, lanes: Sequence[int]) -> Batch:
        key = tuple(lanes)
        batch = self._batches.get(key)
        if batch is None or batch.outdated(self._lanes.positions_L):
            if len(self._batches) >= MAX_KEPT_BATCHES:
                del self._batches[next(iter(self._batches))]
            batch = self._batches[key] = self._lanes.batch(key)
        return batch

    def _forget(self, lane: int) -> None:
        self._batches = {key: batch for key, batch in self._batches.items() if lane not in key}


def _failures(batch: Batch, logits_BV: Tensor, ids_B: Ints) -> dict[int, Failure]:
    """Why rows drew nothing: a row whose own logits are fine has forbidden every token itself."""
    failed_R = np.flatnonzero(ids_B == FAILED)
    fine_R = np.isfinite(best_tokens(select_rows(logits_BV, failed_R))[1])
    return {
        row: FORBIDDEN if fine and row in batch.masked_rows else NOT_FINITE
        for row, fine in zip(failed_R.tolist(), fine_R.tolist(), strict=True)
    }


def _logprobs(batch: Batch, logits_BV: Tensor, token_ids: list[int]) -> dict[int, TokenLogprob]:
    rows = [row for row in batch.num_logprobs if token_ids[row] != FAILED]
    chosen_RV = select_rows(logits_BV, None if len(rows) == len(token_ids) else np.array(rows, dtype=np.int64))
    listed = {place: batch.logprob_ids[row] for place, row in enumerate(rows) if row in batch.logprob_ids}
    nums = [batch.num_logprobs[row] for row in rows]
    scores = score(chosen_RV, [token_ids[row] for row in rows], nums, listed)
    return dict(zip(rows, scores, strict=True))
