"""One member whose calls fail is no witness against a controller that others hear."""

from itertools import count, pairwise

import pytest

from cluster.suspicion import CALM_S, FIRST_PAUSE_S, MAX_UNANSWERED, Suspicion

INTERVAL_S = 5.5  # an announcement that is not answered, and a pause


def test_one_that_hears_others_is_never_ended() -> None:
    beats = count()
    suspicion = Suspicion(lambda: f"7/{next(beats)}")
    assert not any(suspicion.unanswered(number * INTERVAL_S) for number in range(1000))


def test_one_that_hears_nobody_is_ended_at_the_second_time() -> None:
    suspicion = Suspicion(lambda: "7/100")
    assert [suspicion.unanswered(number * INTERVAL_S) for number in range(MAX_UNANSWERED)] == [False, True]


def test_one_that_was_started_again_meanwhile_is_left_alone() -> None:
    beats = iter(["7/100", "8/0", "8/0"])
    suspicion = Suspicion(lambda: next(beats))
    assert [suspicion.unanswered(number * INTERVAL_S) for number in range(3)] == [False, False, True]


def test_an_answer_in_between_clears_it() -> None:
    suspicion = Suspicion(lambda: "7/100")
    for number in range(10):
        assert not suspicion.unanswered(number * INTERVAL_S)
        suspicion.clear()


@pytest.mark.parametrize("broken", [True, False])
def test_without_a_witness_nobody_is_ended(broken: bool) -> None:
    def read() -> str:
        if broken:
            raise ConnectionError("Ray's store does not answer")
        return ""

    suspicion = Suspicion(read)
    assert not any(suspicion.unanswered(number * INTERVAL_S) for number in range(10))


def test_whoever_has_ended_it_waits_longer_and_longer_before_it_does_so_again() -> None:
    suspicion, ended = Suspicion(lambda: "7/100"), list[float]()
    now_s = 0.0
    while now_s < 4 * CALM_S:
        if suspicion.unanswered(now_s):
            ended.append(now_s)
        now_s += INTERVAL_S
    pauses = [later - earlier for earlier, later in pairwise(ended)]
    assert pauses[0] >= FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert len(ended) < 10
    now_s = ended[-1] + 3 * CALM_S  # all was well for long
    assert [suspicion.unanswered(now_s + number * INTERVAL_S) for number in range(3)][:2].count(True) == 1
