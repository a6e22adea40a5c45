"""Tokens that a request forbids altogether: all but those allowed, and what would complete a bad word.

Legend: E edited rows, R of them that allow some tokens only, V vocabulary, I entries over all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention.bad_words import BadWords, BatchBadWords, Tails
from protos.generation_pb2 import Sampling

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LaneMasks:
    """What one sequence forbids; None: nothing of the kind."""

    allowed_ids: Ints | None
    bad_words: BadWords | None


def masks_of(sampling: Sampling) -> LaneMasks | None:
    """What a sequence forbids; None, as for most, if it forbids nothing."""
    if not (sampling.allowed_token_ids or sampling.bad_word_ids):
        return None
    allowed_ids = np.array(sampling.allowed_token_ids, dtype=np.int64) if sampling.allowed_token_ids else None
    bad_words = BadWords.of(sampling.bad_word_ids, sampling.num_ids_per_bad_word) if sampling.bad_word_ids else None
    return LaneMasks(allowed_ids, bad_words)


class BatchMasks:
    """The masks of a batch's edited rows. Built once for a list of lanes, applied at each step."""

    def __init__(self, masks_by_row: Mapping[int, LaneMasks], lanes_E: Ints, vocab_size: int, tails: Tails) -> None:
        self._vocab_size = vocab_size
        allowed = {row: masks.allowed_ids for row, masks in masks_by_row.items() if masks.allowed_ids is not None}
        self._rows_R = np.fromiter(allowed, dtype=np.int64)
        entries = [row * vocab_size + ids for row, ids in allowed.items()]
        self._entries_I: Ints = np.concatenate(entries) if entries else np.zeros(0, dtype=np.int64)
        words = {row: masks.bad_words for row, masks in masks_by_row.items() if masks.bad_words is not None}
        self._bad_words = BatchBadWords(words, lanes_E, tails) if words else None

    def apply(self, logits_EV: Tensor) -> None:
        """Puts -inf for what is forbidden in the rows' logits, contiguous float32, in place."""
        flat = logits_EV.view(-1)
        if len(self._rows_R):
            entries_I = _to(self._entries_I, flat)
            allowed_I = flat[entries_I]
            logits_EV.index_fill_(0, _to(self._rows_R, flat), float("-inf"))
            flat[entries_I] = allowed_I
        if self._bad_words is not None:
            rows_I, ids_I = self._bad_words.forbidden()
            flat[_to(rows_I * self._vocab_size + ids_I, flat)] = float("-inf")

    def record(self, ids_E: Ints) -> None:
        """Notes the tokens drawn, one for each row; a negative one (no token) is not noted."""
        if self._bad_words is not None:
            self._bad_words.record(ids_E)


def _to(values: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
