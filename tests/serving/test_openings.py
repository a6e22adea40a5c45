"""How many sequences of one request are submitted at a time, and in which order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec import spec_for_model
from serving.openings import MAX_OPEN, Openings


def test_a_lone_node_as_it_comes_takes_two_such_requests() -> None:
    attention = spec_for_model("demo").attention
    assert attention.max_sequences + attention.max_queued >= 2 * MAX_OPEN


def test_the_next_is_opened_as_one_ends() -> None:
    openings = Openings(4, max_open=2)
    assert openings.open() == [0, 1]
    assert openings.open() == []
    openings.ended(1)
    assert openings.open() == [2]
    openings.ended(1)
    assert openings.open() == [], "it had ended before"
    openings.ended(0)
    assert openings.open() == [3]


def test_what_is_refused_waits_for_another_to_end() -> None:
    openings = Openings(4, max_open=3)
    assert openings.open() == [0, 1, 2]
    assert openings.refused(2)
    assert openings.refused(1)
    assert openings.open() == []
    openings.ended(0)
    assert openings.open() == [1, 2], "one in its place, and one more is tried"
    assert openings.refused(2)
    assert not openings.refused(1)
    assert openings.open() == [1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20), st.integers(1, 8), st.integers(1, 8), st.data())
def test_every_sequence_gets_its_turn(num: int, max_open: int, capacity: int, data: st.DataObject) -> None:
    openings = Openings(num, max_open)
    running: set[int] = set()
    done: list[int] = []
    offer(openings, running, capacity)
    while running:
        assert len(running) <= min(max_open, capacity)
        index = data.draw(st.sampled_from(sorted(running)))
        running.remove(index)
        done.append(index)
        openings.ended(index)
        offer(openings, running, capacity)
    assert sorted(done) == list(range(num))


def offer(openings: Openings, running: set[int], capacity: int) -> None:
    """Submits what is opened; beyond `capacity` it is refused."""
    for index in openings.open():
        if len(running) < capacity:
            running.add(index)
        else:
            assert openings.refused(index) == bool(running)
