"""Whether a disturbed request said what the undisturbed one had said, and what excuses one that did not. Pure.

Rows are computed in whatever batches chance puts them in, and float32 rounds each batch a little differently. So where
two tokens, or two experts, are as good as each other, both answers are right; nothing else is excused.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.faults.load import Answer, Key

TIE = 1e-5  # of log-probabilities or gate logits: closer than float32 can tell apart

GateMargin = Callable[[Key, Sequence[int]], float]
"""(a request, its output ids so far) -> the smallest gap between any layer's last chosen and first unchosen gate logit,
over all positions up to there."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A completed request with other output ids than the undisturbed one.

    Args:
        position: The first output that differs; the length of the shorter one where that only ends early.
        expected: The undisturbed output there; None: it had ended.
        got: The same of this request.
        token_margin: By how much the undisturbed run's best token there was better than its second; None: not told.
        gate_margin: See GateMargin; None where it was not needed.
    """

    key: Key
    ended_s: float
    position: int
    expected: int | None
    got: int | None
    token_margin: float | None
    gate_margin: float | None

    @property
    def excuse(self) -> str | None:
        """What excuses it; None: nothing does."""
        if self.expected is None or self.got is None:
            return None  # a near-tie changes tokens, not their number
        if _ties(self.token_margin):
            return "two tokens tie"
        return "two experts tie" if _ties(self.gate_margin) else None


def _ties(margin: float | None) -> bool:
    return margin is not None and margin <= TIE


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """The first place in which the two differ, in an id or because one has ended; None: they are equal."""
    for place, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return place
    return None if len(expected) == len(got) else min(len(expected), len(got))


def differences(
    reference: Mapping[Key, Answer], answers: Iterable[Answer], gate_margin: GateMargin
) -> list[Difference]:
    """The completed requests that differ; `gate_margin` is asked only for those that no tie of tokens excuses.

    A tie of tokens counts where the outputs part: at an earlier one, both runs have chosen the same. A tie of experts
    counts wherever it comes before, in the prompt too: what another expert said is still in the cache.
    """
    found: list[Difference] = []
    for answer in answers:
        if answer.record.error is not None:
            continue
        undisturbed = reference[answer.key]
        place = first_difference(undisturbed.token_ids, answer.token_ids)
        if place is not None:
            found.append(_difference(undisturbed, answer, place, gate_margin))
    return found


def _difference(undisturbed: Answer, answer: Answer, place: int, gate_margin: GateMargin) -> Difference:
    expected, got = _at(undisturbed.token_ids, place), _at(answer.token_ids, place)
    margin = undisturbed.margins[place] if place < len(undisturbed.margins) else math.inf
    token_margin = margin if math.isfinite(margin) else None
    needed = expected is not None and got is not None and not _ties(token_margin)
    exact = gate_margin(answer.key, undisturbed.token_ids[:place]) if needed else None
    return Difference(answer.key, answer.ended_s, place, expected, got, token_margin, exact)


def _at(token_ids: Sequence[int], place: int) -> int | None:
    return token_ids[place] if place < len(token_ids) else None
