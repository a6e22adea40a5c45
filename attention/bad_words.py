"""Words that must not be written: the token that would complete one is forbidden.

A bad word is a list of token ids; it is completed where the outputs end in all of them but the last. Legend: L lanes,
W bad words of a batch, P tokens before a bad word's last one at most, R rows of a batch that have bad words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Ids: TypeAlias = npt.NDArray[np.int32]

MAX_BAD_WORD_TOKENS = 32
NUM_BEFORE = MAX_BAD_WORD_TOKENS - 1
NONE = -1  # where fewer tokens have been written
ANY = -2  # where a bad word has fewer tokens


@dataclass(frozen=True)
class BadWords:
    """One sequence's bad words: `before_WP` is padded on the left with ANY, `last_W` are their last tokens."""

    before_WP: Ids
    last_W: Ints

    @classmethod
    def of(cls, token_ids: Sequence[int], lengths: Sequence[int]) -> "BadWords":
        """Takes the tokens of all words, one word after the other, and how many each has (1 to MAX_BAD_WORD_TOKENS)."""
        lengths_W = np.array(lengths, dtype=np.int64)
        assert lengths_W.sum() == len(token_ids), f"{len(token_ids)} tokens for words of {lengths}"
        ids_WT = np.full((len(lengths_W), MAX_BAD_WORD_TOKENS), ANY, dtype=np.int32)
        ids_WT[np.arange(MAX_BAD_WORD_TOKENS) >= MAX_BAD_WORD_TOKENS - lengths_W[:, None]] = token_ids
        return cls(ids_WT[:, :-1].copy(), ids_WT[:, -1].astype(np.int64))


class Tails:
    """The last outputs of every lane that has bad words."""

    def __init__(self, num_lanes: int) -> None:
        self._ids_LP: Ids = np.full((num_lanes, NUM_BEFORE), NONE, dtype=np.int32)

    def start(self, lane: int, output_ids: Sequence[int]) -> None:
        """Fills a lane with the end of what has been written."""
        last = output_ids[-NUM_BEFORE:]
        self._ids_LP[lane] = NONE
        self._ids_LP[lane, NUM_BEFORE - len(last) :] = last

    def of(self, lanes_R: Ints) -> Ids:
        """The tails of some lanes [R, P]; NONE where fewer tokens have been written."""
        return self._ids_LP[lanes_R]

    def record(self, lanes_R: Ints, ids_R: Ints) -> None:
        """Appends one token to each of some lanes."""
        self._ids_LP[lanes_R, :-1] = self._ids_LP[lanes_R, 1:]
        self._ids_LP[lanes_R, -1] = ids_R


class BatchBadWords:
    """The bad words of one batch. Built once for a list of lanes, asked at each step."""

    def __init__(self, words_by_row: Mapping[int, BadWords], lanes_B: Ints, tails: Tails) -> None:
        self._tails = tails
        self._rows_R = np.fromiter(words_by_row, dtype=np.int64)
        self._lanes_R = lanes_B[self._rows_R]
        words = list(words_by_row.values())
        self._owner_W = np.repeat(np.arange(len(words)), [len(each.last_W) for each in words])
        self._before_WP = np.concatenate([each.before_WP for each in words])
        self._last_W = np.concatenate([each.last_W for each in words])

    def forbidden(self) -> tuple[Ints, Ints]:
        """Rows and token ids that the next token must not be: two parallel arrays."""
        tails_RP = self._tails.of(self._lanes_R)
        nearest_W = self._before_WP[:, -1]  # most words are ruled out by the token before their last
        near_W = np.flatnonzero((nearest_W == ANY) | (nearest_W == tails_RP[self._owner_W, -1]))
        before_WP = self._before_WP[near_W]
        complete_W = ((before_WP == ANY) | (before_WP == tails_RP[self._owner_W[near_W]])).all(axis=1)
        found_W = near_W[complete_W]
        return self._rows_R[self._owner_W[found_W]], self._last_W[found_W]

    def record(self, ids_B: Ints) -> None:
        """Notes the tokens drawn, one for each row of the batch; a negative one (no token) is not noted."""
        ids_R = ids_B[self._rows_R]
        drawn_R = ids_R >= 0
        self._tails.record(self._lanes_R[drawn_R], ids_R[drawn_R])
