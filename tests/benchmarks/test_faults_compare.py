"""Outputs that differ, and what excuses them."""

import math
from collections.abc import Sequence

import pytest

from benchmarks.faults.compare import TIE, Difference, differences, first_difference
from benchmarks.faults.load import Answer, Key
from benchmarks.load import RequestRecord

KEY = (0, 0)
NEAR, FAR = TIE / 2, 2 * TIE


def answer(*token_ids: int, margins: Sequence[float] = (), error: str | None = None) -> Answer:
    return Answer(KEY, RequestRecord(0.0, error=error), 1.0, token_ids, tuple(margins))


def compare(undisturbed: Answer, other: Answer, gate_margin: float | None = None) -> Difference | None:
    """The one difference, or None; `gate_margin` None: it must not be asked for."""

    def gates(key: Key, output_ids: Sequence[int]) -> float:
        assert gate_margin is not None, "the exact model is only for what no tie of tokens excuses"
        assert key == KEY
        asked.append(tuple(output_ids))
        return gate_margin

    asked: list[tuple[int, ...]] = []
    found = differences({KEY: undisturbed}, [other], gates)
    assert len(found) <= 1
    if gate_margin is not None:
        assert asked == [undisturbed.token_ids[: found[0].position]]
    return found[0] if found else None


def test_the_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [4]) == 0


def test_equal_outputs_and_failed_requests_do_not_differ() -> None:
    assert compare(answer(1, 2), answer(1, 2)) is None
    assert compare(answer(1, 2), answer(1, error="HTTP 503")) is None


@pytest.mark.parametrize(
    ("margins", "gate_margin", "excuse"),
    [
        ([FAR, NEAR, FAR], None, "two tokens tie"),
        ([FAR, FAR, FAR], NEAR, "two experts tie"),
        ([FAR, FAR, FAR], FAR, None),
        ([NEAR, FAR, NEAR], FAR, None),  # ties where both have chosen the same, or that come later
        ([FAR, math.inf, FAR], FAR, None),  # its second was not told
        ([], NEAR, "two experts tie"),
    ],
)
def test_what_excuses_a_difference(margins: list[float], gate_margin: float | None, excuse: str | None) -> None:
    found = compare(answer(1, 2, 3, margins=margins), answer(1, 9, 3), gate_margin)
    assert found is not None
    assert (found.position, found.expected, found.got, found.excuse) == (1, 2, 9, excuse)


def test_nothing_excuses_an_output_of_another_length() -> None:
    margins = [NEAR, NEAR, NEAR]
    for one, other in ((answer(1, 2, 3, margins=margins), answer(1, 2)), (answer(1, margins=margins), answer(1, 2))):
        found = compare(one, other)
        assert found is not None
        assert found.excuse is None
