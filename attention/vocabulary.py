"""Passes over whole rows of logits: the best token of a row, and the few tokens that reach a floor.

Sorting 32000 logits costs 2.4 ms a row; finding the 50 best through the maxima of blocks costs 15 us (one
thread, 32 rows). So nothing here sorts pairs of a vocabulary: the maxima of blocks of 64 say where to look. (Its logits
alone are sorted in 0.2 ms; that pays from three eighths of them on, `attention/drawing.py`.)
Legend: R rows, V vocabulary, N blocks of a row, L tokens of a block, M candidates (padded), I hits over all rows.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

BLOCK = 64
MANY, MOST = 3 / 8, 3 / 4  # of a vocabulary, of its blocks
SAMPLED = 8
LOW_WORD = np.int64(0xFFFFFFFF)
LAST_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Candidates:
    """The tokens of each row that reached its floor, best first, equal ones by lower id; padded with (-inf, 0)."""

    values_RM: Floats
    ids_RM: Ints


def best_tokens(logits_RV: Tensor) -> tuple[Ints, npt.NDArray[np.floating]]:
    """Id and logit of each row's largest logit, the lowest id among equal ones. A NaN counts as the largest."""
    if logits_RV.device.type == "cpu":  # NumPy's argmax is vectorised: 65 us for 32 x 32000, torch's 850 us
        rows_RV = _floats(logits_RV).numpy()
        ids_R = rows_RV.argmax(axis=-1)
        return ids_R, rows_RV[np.arange(len(ids_R)), ids_R]
    values_R, found_R = logits_RV.max(dim=-1)
    return found_R.cpu().numpy(), _floats(values_R).cpu().numpy()


def _floats(logits: Tensor) -> Tensor:
    return logits.float()  # no copy where they are float32 already


def in_blocks(values_RV: Tensor, fill: float) -> Tensor:
    """The rows cut in blocks, [R, N, L]; a last block that the vocabulary does not fill ends in `fill`."""
    num_rows, vocab_size = values_RV.shape
    missing = -vocab_size % BLOCK
    if missing:
        values_RV = torch.nn.functional.pad(values_RV, (0, missing), value=fill)
    return values_RV.reshape(num_rows, -1, BLOCK)


@dataclass(frozen=True)
class BlockedLogits:
    """Rows of logits beside the maximum of each of their blocks."""

    logits_RV: Tensor
    blocks_RNL: Tensor
    maxima_RN: Floats  # on the host

    @classmethod
    def of(cls, logits_RV: Tensor) -> "BlockedLogits":
        """Takes the maxima of `logits_RV` [R, V] float32: one pass over the vocabulary."""
        blocks_RNL = in_blocks(logits_RV, float("-inf"))
        return cls(logits_RV, blocks_RNL, blocks_RNL.amax(dim=-1).cpu().numpy())

    def kth_floors(self, top_k_R: Ints) -> Floats:
        """For each row a floor that its k best tokens, and seldom many more, reach.

        The k-th largest of the blocks' maxima is one, because k tokens, one in each of k blocks, reach it. Worked
        example, blocks of 2, k = 2: (5 1)(3 4)(0 2) has maxima 5 4 2, so the floor is 4, which exactly 5 and 4 reach.
        """
        num_rows, num_blocks = self.maxima_RN.shape
        largest_k, maxima_RN = int(top_k_R.max()), self.maxima_RN
        if largest_k > num_blocks:  # smaller blocks then, down to single tokens
            width = 8 if largest_k <= num_blocks * BLOCK // 8 else 1
            maxima_RN = self.blocks_RNL.reshape(num_rows, -1, width).amax(dim=-1).cpu().numpy()
        return -np.sort(-maxima_RN, axis=-1)[np.arange(num_rows), top_k_R - 1]

    def reaching(self, floors_R: Floats, rows_R: Ints | None = None) -> Candidates:
        """The tokens whose logit is at least their row's floor [R]; of some rows only, if `rows_R` names them."""
        lines_I, ids_I, values_I = self._hits(floors_R, rows_R)
        return _best_first(len(floors_R), lines_I, ids_I, values_I)

    def many_reach(self, floors_R: Floats, rows_R: Ints) -> npt.NDArray[np.bool_]:
        """Of which of the given rows so many tokens reach the floor that listing them takes longer than sorting all.

        An estimate, by every SAMPLED-th token. Floors and what is returned: one for each of `rows_R`.
        """
        num_blocks_R = np.count_nonzero(self.maxima_RN[rows_R] >= floors_R[:, None], axis=-1)
        many_R = num_blocks_R >= MOST * self.maxima_RN.shape[1]  # of others so many hardly ever do
        if many_R.any():
            sample_RM = _on_host(self.logits_RV[:, ::SAMPLED], rows_R[many_R])
            many_R[many_R] = (sample_RM >= floors_R[many_R, None]).mean(axis=-1) >= MANY
        return many_R

    def rows(self, rows_R: Ints) -> Floats:
        """Some rows, on the host: [R, V]."""
        return _on_host(self.logits_RV, rows_R)

    def count_above(self, logits_R: Floats) -> Ints:
        """How many tokens of each row have a greater logit than the given one [R].

        An improbable token has thousands above it: they are counted where they are, not listed (a prompt that a client
        chose may hold nothing else).
        """
        line_I, _, values_IL = self._blocks(self.maxima_RN > logits_R[:, None], None)
        counts_I = np.count_nonzero(values_IL > logits_R[line_I, None], axis=-1)
        return np.bincount(line_I, weights=counts_I, minlength=len(logits_R)).astype(np.int64)

    def largest(self, count: int) -> Candidates:
        """The `count` best tokens of each row: [R, min(count, V)]. No row may hold a NaN."""
        num_rows, vocab_size = self.logits_RV.shape
        count = min(count, vocab_size)
        found = self.reaching(self.kth_floors(np.full(num_rows, count, dtype=np.int64)))
        return Candidates(found.values_RM[:, :count], found.ids_RM[:, :count])

    def _hits(self, floors_R: Floats, rows_R: Ints | None) -> tuple[Ints, Ints, Floats]:
        """Every token that reaches its floor, row by row: its place in `floors_R`, its id and its logit."""
        maxima_RN = self.maxima_RN if rows_R is None else self.maxima_RN[rows_R]
        line_I, block_I, values_IL = self._blocks(maxima_RN >= floors_R[:, None], rows_R)
        hits_I = np.flatnonzero(values_IL >= floors_R[line_I, None])
        found_in_I = hits_I // BLOCK
        ids_I = block_I[found_in_I] * BLOCK + hits_I % BLOCK
        lines_I, values_I = line_I[found_in_I], values_IL.reshape(-1)[hits_I]
        if self.logits_RV.shape[1] % BLOCK:  # a floor of -inf also finds what fills the last block
            real_I = ids_I < self.logits_RV.shape[1]
            return lines_I[real_I], ids_I[real_I], values_I[real_I]
        return lines_I, ids_I, values_I

    def _blocks(self, chosen_RN: npt.NDArray[np.bool_], rows_R: Ints | None) -> tuple[Ints, Ints, Floats]:
        """The chosen blocks, row by row: each one's line of `chosen_RN`, its place in the row and its logits [I, L].

        `rows_R`: the rows that the lines stand for; None: all of them.
        """
        num_rows, num_blocks = self.maxima_RN.shape
        found_I = np.flatnonzero(chosen_RN)
        line_I = found_I // num_blocks
        block_I = found_I - line_I * num_blocks
        index_I = torch.from_numpy(block_I + num_blocks * (line_I if rows_R is None else rows_R[line_I]))
        flat_blocks = self.blocks_RNL.reshape(num_rows * num_blocks, BLOCK)
        return line_I, block_I, flat_blocks.index_select(0, index_I.to(flat_blocks.device)).cpu().numpy()


def _on_host(values_RV: Tensor, rows_R: Ints) -> Floats:
    return values_RV.index_select(0, torch.from_numpy(rows_R).to(values_RV.device)).cpu().numpy()


def _best_first(num_rows: int, rows_I: Ints, ids_I: Ints, values_I: Floats) -> Candidates:
    """Arranges hits, given row by row, in one padded line per row and sorts each line.

    Logit and id are packed in one integer (high word: the logit, so that a larger one comes first; low word: the
    id), because NumPy sorts integers many times faster than it, or torch, sorts pairs.
    """
    counts_R = np.bincount(rows_I, minlength=num_rows)
    columns_I = np.arange(len(rows_I)) - (np.cumsum(counts_R) - counts_R)[rows_I]
    keys_RM = np.full((num_rows, max(int(counts_R.max()), 1)), LAST_KEY, dtype=np.int64)
    keys_RM[rows_I, columns_I] = (_descending_words(values_I).astype(np.int64) << 32) | ids_I
    keys_RM.sort(axis=-1)
    padding_RM = keys_RM == LAST_KEY
    values_RM = _values_of_words((keys_RM >> 32).astype(np.int32))
    values_RM[padding_RM] = -np.inf
    return Candidates(values_RM, np.where(padding_RM, 0, keys_RM & LOW_WORD))


def _descending_words(values_I: Floats) -> npt.NDArray[np.int32]:
    """Maps float32 to int32 so that a larger number gives a smaller word (IEEE 754 orders like sign and magnitude)."""
    bits_I = (values_I + np.float32(0.0)).view(np.int32)  # adding 0 makes -0 equal to 0
    return ~np.where(bits_I < 0, bits_I ^ np.int32(0x7FFFFFFF), bits_I)


def _values_of_words(words: npt.NDArray[np.int32]) -> Floats:
    bits = ~words
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)
