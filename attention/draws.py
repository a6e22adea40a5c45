"""Which rows of some logits are drawn in which way, and the drawing of them all without copies of rows that need none.

A copy of a row of 150,000 float32 logits takes 250 µs, its largest logit 15 µs, a draw 300 µs (one thread, 64 rows). So
where nearly all rows are drawn in one way, all are, and what comes of the others is forgotten.
Legend: B rows of the batch, R rows of a group, E edited rows, V vocabulary.
"""

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention.drawing import FAILED, Filters, Workspace, draw_filtered, draw_unfiltered
from attention.masks import BatchMasks
from attention.penalties import BatchEdits
from attention.randomness import Words, uniforms
from attention.vocabulary import best_tokens

Ints: TypeAlias = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

# From these shares of the batch on, all of its rows are gone through for some of them.
GREEDY_SHARE, DRAWN_SHARE = 1 / 16, 7 / 8


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch.

    Args:
        rows_R: Which they are; None: all.
        covers: Whether others are gone through with them: arrays of theirs have B entries then.
    """

    rows_R: Ints | None
    covers: bool

    @classmethod
    def of(cls, chosen_B: npt.NDArray[np.bool_], share: float) -> "Rows | None":
        """Those chosen, with the others from so large a share on; None if there is none."""
        num_chosen, num_rows = int(chosen_B.sum()), len(chosen_B)
        if not num_chosen:
            return None
        if num_chosen == num_rows:
            return cls(None, covers=True)
        return cls(np.flatnonzero(chosen_B), covers=num_chosen >= share * num_rows)

    def alone(self) -> "Rows":
        """The same rows without others, for where all that is gone through is copied, as into another type."""
        return self if self.rows_R is None else Rows(self.rows_R, covers=False)

    def select(self, logits_BV: Tensor) -> Tensor:
        """What is to be gone through, in its own type; a copy unless that is everything."""
        return logits_BV if self.covers else select_rows(logits_BV, self.rows_R)

    def take(self, values_B: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The values of what is gone through."""
        return values_B if self.covers else values_B[self.rows_R]

    def put(self, ids: Ints, ids_B: Ints) -> None:
        """Puts what was found for what was gone through in its place."""
        if self.rows_R is None:
            ids_B[:] = ids
        else:
            ids_B[self.rows_R] = ids[self.rows_R] if self.covers else ids


@dataclass(frozen=True)
class Group:
    """Rows that are drawn the same way; the arrays are those of what is gone through."""

    rows: Rows
    states_R: Words
    filters: Filters
    temperature_R1: Tensor | None  # on the device; None: every one is 1


@dataclass(frozen=True)
class Draws:
    """How rows are drawn: each in at most one way. None: none is so."""

    greedy: Rows | None
    unfiltered: Group | None
    filtered: Group | None

    def draw(self, logits_BV: Tensor, positions_B: Ints, workspace: Workspace) -> Ints:
        """Draws a token id for each row, FAILED where there is none, or where the row is not to be drawn."""
        if self.greedy is not None and self.greedy.rows_R is None:
            return _greedy(logits_BV)
        ids_B = np.full(len(positions_B), FAILED, dtype=np.int64)
        if (rows := self.greedy) is not None:
            rows = rows.alone() if logits_BV.is_cpu and logits_BV.dtype != torch.float32 else rows
            rows.put(_greedy(rows.select(logits_BV)), ids_B)
        if (group := self.unfiltered) is not None:
            logits_RV, uniform_R = group.rows.select(logits_BV).float(), _uniforms(group, positions_B)
            group.rows.put(draw_unfiltered(logits_RV, group.temperature_R1, uniform_R, workspace), ids_B)
        if (group := self.filtered) is not None:
            logits_RV, uniform_R = group.rows.select(logits_BV).float(), _uniforms(group, positions_B)
            group.rows.put(draw_filtered(logits_RV, group.filters, uniform_R, workspace), ids_B)
        return ids_B


@dataclass(frozen=True)
class EditedRows:
    """The rows of a batch whose logits are edited before they are drawn, and how. `rows_E` is None when all are."""

    rows_E: Ints | None
    edits: BatchEdits | None
    masks: BatchMasks | None
    draws: Draws

    def take(self, values_B: Ints) -> Ints:
        """The values of its rows."""
        return values_B if self.rows_E is None else values_B[self.rows_E]

    def draw(self, logits_BV: Tensor, positions_B: Ints, workspace: Workspace) -> Ints:
        """Edits a copy of its rows and draws from that: a token id for each of them, [E]."""
        if self.rows_E is None:
            edited_EV = logits_BV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        else:
            edited_EV = select_rows(logits_BV, self.rows_E).float()
        if self.edits is not None:
            self.edits.apply(edited_EV)
        if self.masks is not None:
            self.masks.apply(edited_EV)
        return self.draws.draw(edited_EV, self.take(positions_B), workspace)

    def record(self, ids_B: Ints) -> None:
        """Notes the tokens drawn, one for each row of the batch; a negative one (no token) is not noted."""
        ids_E = self.take(ids_B)
        if self.edits is not None:
            self.edits.record(ids_E.tolist())
        if self.masks is not None:
            self.masks.record(ids_E)


def select_rows(logits_BV: Tensor, rows_R: Ints | None) -> Tensor:
    """Some rows of the logits [R, V], in their own type; None selects all, without a copy."""
    if rows_R is None:
        return logits_BV
    return logits_BV.index_select(0, torch.from_numpy(rows_R).to(logits_BV.device))


def _greedy(logits_RV: Tensor) -> Ints:
    ids_R, values_R = best_tokens(logits_RV)
    return np.where(np.isfinite(values_R), ids_R, FAILED)


def _uniforms(group: Group, positions_B: Ints) -> npt.NDArray[np.float64]:
    return uniforms(group.states_R, group.rows.take(positions_B))
