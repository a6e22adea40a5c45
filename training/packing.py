"""Packed samples: the documents of a task laid end to end and cut into pieces of equal length.

Legend: B sequences (samples of a batch), L positions of a sample, M = L + 1 tokens that a sample spans.

Example: L = 4 and two documents, `a b c .` and `d e .`, are two samples; `-` is a label of -1, from which nothing is
learnt, and the last position is padding:

              sample 0      sample 1
  inputs      a b c .       d e . .
  labels      b c . -       e . - -
  positions   0 1 2 3       0 1 2 0

A label is the next token, so neighbours share one: sample s spans tokens s * L to s * L + L of its task. With documents
together, the first sample's last label is `d`, and positions count from the sample's start.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.data_errors import StoreError
from training.tokens import REMEDY, TokenStore

NO_LABEL = -1

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples, all int64.

    Args:
        ids_BL: The inputs; the end-of-sequence id where a task's last sample is padded.
        labels_BL: The token that follows each; -1 where nothing is to be learnt.
        positions_BL: 0 where a sample or, if they are separate, a document starts, and counting up from there. A query
            may look back as far as the latest 0.
        tasks_B: Each sample's task; 0 in a store without tasks.
    """

    ids_BL: Indices
    labels_BL: Indices
    positions_BL: Indices
    tasks_B: Indices


class PackedData:
    """The samples of a store, each made when it is asked for. It keeps up to 16 bytes a document in memory.

    Args:
        store: Where the documents are.
        sequence_length: Positions of a sample; at least 1.
        separate_documents: Whether nothing is learnt across the border of two documents.

    Attributes:
        num_samples: How many samples there are, numbered task by task.
        num_padding: Positions of padding in all of them together.

    Raises:
        StoreError: Its documents are too short for a single sample.
    """

    def __init__(self, store: TokenStore, sequence_length: int, separate_documents: bool = True) -> None:
        assert sequence_length > 0
        self.store = store
        self.sequence_length = sequence_length
        self.separate_documents = separate_documents
        self._documents = _Documents(store)
        # What a task's n tokens give: n - 1 have a next one.
        lengths = np.diff(self._documents.task_starts)
        samples = -(-np.maximum(lengths - 1, 0) // sequence_length)
        self._first_samples = _cumulative(samples)
        self.num_samples = int(samples.sum())
        self.num_padding = int((samples * sequence_length - lengths)[samples > 0].clip(min=0).sum())
        if not self.num_samples:
            raise StoreError(f"{store.directory}: its documents have no second token to learn; give longer ones")

    def batch(self, indices_B: Indices) -> Batch:
        """The samples with these indices, each below `num_samples`; reads their tokens and no others.

        Raises:
            StoreError: The store is damaged.
        """
        assert indices_B.size == 0 or (indices_B.min() >= 0 and indices_B.max() < self.num_samples), indices_B
        tasks_B = np.searchsorted(self._first_samples, indices_B, side="right") - 1
        first_B = (
            self._documents.task_starts[tasks_B] + (indices_B - self._first_samples[tasks_B]) * self.sequence_length
        )
        end_B = self._documents.task_starts[tasks_B + 1]
        places_BM = first_B[:, None] + np.arange(self.sequence_length + 1)
        real_BM = places_BM < end_B[:, None]
        places_BM = np.minimum(places_BM, end_B[:, None] - 1)
        documents_BM = self._documents.at(places_BM)
        ids_BM = np.where(real_BM, self._documents.tokens(places_BM, documents_BM), self.store.info.origin.eos_id)
        if ids_BM.size and ids_BM.max() >= self.store.info.origin.vocab_size:  # no row of an embedding is read for it
            raise StoreError(f"{self.store.directory}: has ids beyond its vocabulary. {REMEDY}")
        documents_BM[~real_BM] = -1  # padding is a document of its own
        labelled_BL = real_BM[:, 1:]
        if self.separate_documents:
            labelled_BL = labelled_BL & (documents_BM[:, 1:] == documents_BM[:, :-1])
        return Batch(
            ids_BL=ids_BM[:, :-1],
            labels_BL=np.where(labelled_BL, ids_BM[:, 1:], NO_LABEL),
            positions_BL=self._positions(documents_BM[:, :-1]),
            tasks_B=tasks_B,
        )

    def _positions(self, documents_BL: Indices) -> Indices:
        counted_L = np.arange(self.sequence_length)
        if not self.separate_documents:
            return np.repeat(counted_L[None], len(documents_BL), axis=0)
        starts_BL = np.zeros_like(documents_BL)
        changes = documents_BL[:, 1:] != documents_BL[:, :-1]
        starts_BL[:, 1:] = np.where(changes, counted_L[1:], 0)
        return counted_L - np.maximum.accumulate(starts_BL, axis=1)


class _Documents:
    """All documents of a store in one line, those of a task next to each other and otherwise in the store's order.

    Attributes:
        task_starts: Where each task starts in the line, and where the last one ends.
    """

    def __init__(self, store: TokenStore) -> None:
        self._tokens_N = store.tokens_N
        self._starts: Indices = store.offsets
        self._shifts: Indices | None = None  # from the line to tokens.bin, for each document of the line; None: no way
        self.task_starts: Indices = np.array([0, store.info.num_tokens])
        if store.tasks is not None:
            order = np.argsort(store.tasks, kind="stable")
            self._starts = _cumulative(np.diff(store.offsets)[order])
            self._shifts = store.offsets[order] - self._starts[:-1]
            num_documents = np.bincount(store.tasks, minlength=len(store.info.task_names))
            self.task_starts = self._starts[_cumulative(num_documents)]

    def at(self, places_BM: Indices) -> Indices:
        """The document of the line at each place."""
        return np.searchsorted(self._starts, places_BM, side="right") - 1

    def tokens(self, places_BM: Indices, documents_BM: Indices) -> Indices:
        """The ids at each place, of which the documents are known."""
        if self._shifts is not None:
            places_BM = places_BM + self._shifts[documents_BM]
        return self._tokens_N[places_BM].astype(np.int64)


def _cumulative(counts: Indices) -> Indices:
    """Where each of several runs starts, and where the last one ends: one more than `counts`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
