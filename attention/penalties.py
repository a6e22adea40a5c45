"""Edits of the logits that few requests ask for: logit bias, tokens forbidden for a while, and penalties.

Each touches only the token ids it names (those biased, forbidden, or already seen), never a whole row, and all rows'
ids are edited together. Legend: E edited rows, V vocabulary, I edited entries over all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protos.generation_pb2 import Sampling

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
NO_IDS: Ints = np.zeros(0, dtype=np.int64)
NO_BIAS: Floats = np.zeros(0, dtype=np.float32)


class SeenTokens:
    """The distinct tokens of one sequence that a penalty concerns, and how often each is among its outputs."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        self.repetition = sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0
        self.presence = sampling.presence_penalty
        self.frequency = sampling.frequency_penalty
        # Only the repetition penalty looks at the prompt.
        prompt = np.unique(np.asarray(prompt_ids if self.repetition != 1.0 else (), dtype=np.int64))
        self._index = {token_id: index for index, token_id in enumerate(prompt.tolist())}
        self._ids: Ints = prompt
        self._counts: Floats = np.zeros(len(prompt), dtype=np.float32)
        for token_id in output_ids:
            self.record(token_id)

    @property
    def ids(self) -> Ints:
        """Distinct token ids, in order of their first appearance (the prompt's first, sorted)."""
        return self._ids[: len(self._index)]

    @property
    def output_counts(self) -> Floats:
        """How many outputs each of `ids` is; 0 for one that only the prompt holds."""
        return self._counts[: len(self._index)]

    def record(self, token_id: int) -> None:
        """Counts one more output."""
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self._ids):
            room = max(64, index)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[index] = token_id
        self._counts[index] += 1.0


@dataclass(frozen=True)
class LaneEdits:
    """What one sequence asks for: `bias[i]` is added to the logit of `biased_ids[i]`."""

    biased_ids: Ints
    bias: Floats
    min_tokens: int
    forbidden_ids: Ints  # until `min_tokens` outputs
    seen: SeenTokens | None

    @property
    def lasting(self) -> bool:
        """Whether it asks for more than `min_tokens`."""
        return self.seen is not None or bool(len(self.bias))


def edits_of(
    sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int], eos_token_ids: Sequence[int]
) -> LaneEdits | None:
    """The edits that a sequence asks for; None, as for most, if it asks for none."""
    repetition = sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0
    penalised = bool(sampling.presence_penalty or sampling.frequency_penalty or repetition != 1.0)
    if not (penalised or sampling.logit_bias or sampling.min_tokens):
        return None
    seen = SeenTokens(sampling, prompt_ids, output_ids) if penalised else None
    forbidden_ids = np.array(sorted({*eos_token_ids, *sampling.stop_token_ids}), dtype=np.int64)
    bias, num = sampling.logit_bias, len(sampling.logit_bias)
    return LaneEdits(
        biased_ids=np.fromiter(bias.keys(), dtype=np.int64, count=num),
        bias=np.fromiter(bias.values(), dtype=np.float32, count=num),
        min_tokens=sampling.min_tokens,
        forbidden_ids=forbidden_ids,
        seen=seen,
    )


class BatchEdits:
    """The edits of a batch's edited rows. Built once for a list of lanes, applied at each step.

    Args:
        edits_by_row: Row -> its edits; only rows that have some.
        held: Those of them that may not end yet.
    """

    def __init__(self, edits_by_row: Mapping[int, LaneEdits], held: Sequence[int], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        biased = {row: edits for row, edits in edits_by_row.items() if len(edits.bias)}
        self._bias_entries = _entries({row: edits.biased_ids for row, edits in biased.items()}, vocab_size)
        self._bias = np.concatenate([NO_BIAS, *(edits.bias for edits in biased.values())])
        self._held_entries = _entries({row: edits_by_row[row].forbidden_ids for row in held}, vocab_size)
        self._seen = {row: edits.seen for row, edits in edits_by_row.items() if edits.seen is not None}

    def apply(self, logits_EV: Tensor) -> None:
        """Edits the rows' logits, contiguous float32, in place."""
        flat = logits_EV.view(-1)
        if len(self._bias):
            entries_I = _to(self._bias_entries, flat)
            flat[entries_I] += _to(self._bias, flat)
        if len(self._held_entries):
            flat[_to(self._held_entries, flat)] = float("-inf")
        if self._seen:
            self._penalise(flat)

    def record(self, token_ids: Sequence[int]) -> None:
        """Counts the tokens drawn, one for each row; a negative one (no token) is not counted."""
        for row, seen in self._seen.items():
            if token_ids[row] >= 0:
                seen.record(token_ids[row])

    def _penalise(self, flat: Tensor) -> None:
        seen = list(self._seen.values())
        lengths = [len(tokens.ids) for tokens in seen]
        starts = np.fromiter(self._seen, dtype=np.int64, count=len(seen)) * self._vocab_size
        ids_I = np.concatenate([tokens.ids for tokens in seen])
        entries_I = _to(ids_I + np.repeat(starts, lengths), flat)
        counts_I = _to(np.concatenate([tokens.output_counts for tokens in seen]), flat)
        rates_I3 = np.array([(t.repetition, t.presence, t.frequency) for t in seen], np.float32).repeat(lengths, axis=0)
        repetition_I, presence_I, frequency_I = _to(rates_I3, flat).unbind(dim=1)
        logits_I = flat[entries_I]
        logits_I = torch.where(logits_I > 0, logits_I / repetition_I, logits_I * repetition_I)
        flat[entries_I] = logits_I - frequency_I * counts_I - presence_I * (counts_I > 0)


def _entries(ids_by_row: Mapping[int, Ints], vocab_size: int) -> Ints:
    """Where the named tokens lie in the flattened logits."""
    return np.concatenate([NO_IDS, *(row * vocab_size + ids for row, ids in ids_by_row.items())])


def _to(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
