"""What the oracle judges, and what it excuses."""

from collections.abc import Sequence

import pytest
import torch

import tests.conftest
import tests.oracle
from protos.generation_pb2 import TokenLogprob
from tests.oracle import Oracle, Tally, Verdict


class FixedOracle(Oracle):
    """Prefers token 2 everywhere; the first near-tie is where the test says."""

    def __init__(self, num_certain: int) -> None:
        self._num_certain = num_certain

    def verdict(self, ids: Sequence[int]) -> Verdict:
        return Verdict(torch.eye(3)[2].repeat(len(ids), 1), self._num_certain)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """A count of this test's own, which no other is held against."""
    monkeypatch.setattr(tests.oracle, "tally", Tally())
    return tests.oracle.tally


@pytest.mark.parametrize(("num_certain", "num_judged"), [(0, 0), (2, 0), (3, 1), (5, 3), (6, 4), (7, 4)])
def test_what_follows_a_near_tie_is_excused_and_counted(tally: Tally, num_certain: int, num_judged: int) -> None:
    """Three tokens of a prompt, whose last position decides about the first of four outputs."""
    for wrong in range(4):
        output = [2] * wrong + [1] + [2] * (3 - wrong)
        if wrong < num_judged:
            with pytest.raises(AssertionError, match=f"output {wrong} is 1"):
                FixedOracle(num_certain).check_greedy([0, 0, 0], output)
        else:
            FixedOracle(num_certain).check_greedy([0, 0, 0], output)
    assert (tally.num_asked, tally.num_judged) == (16, 4 * num_judged)


def test_scores_before_a_near_tie_are_judged(tally: Tally) -> None:
    right = float(torch.eye(3)[2].log_softmax(-1)[2])
    scores = [TokenLogprob(token_id=2, logprob=right + wrong) for wrong in (0.0, 0.1)]
    FixedOracle(num_certain=1).check_greedy([0], [2, 2], scores)
    with pytest.raises(AssertionError, match="log-probability is off"):
        FixedOracle(num_certain=1).check_greedy([0], [2, 2], scores[::-1])
    assert tally.num_judged > 0


@pytest.mark.usefixtures("tally")
@pytest.mark.parametrize(("num_certain", "enough"), [(2, False), (3, True)])
def test_a_test_needs_half_of_its_tokens_judged(num_certain: int, enough: bool) -> None:
    watch = tests.conftest.judging()
    next(watch)
    FixedOracle(num_certain).check_greedy([0, 0], [2] * 4)
    if enough:
        assert next(watch, None) is None
    else:
        with pytest.raises(AssertionError, match="1 of 4 tokens were judged"):
            next(watch)
