"""How many sequences of one request are submitted at a time, and in which order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec import spec_for_model
from serving.admission import MAX_OPEN, Admission


def test_a_lone_node_as_it_comes_takes_two_such_requests() -> None:
    attention = spec_for_model("demo").attention
    assert attention.max_sequences + attention.max_queued >= 2 * MAX_OPEN


def test_the_next_is_opened_as_one_ends() -> None:
    admission = Admission(4, max_open=2)
    assert admission.open() == [0, 1]
    assert admission.open() == []
    admission.ended(1)
    assert admission.open() == [2]
    admission.ended(1)
    assert admission.open() == [], "it had ended before"
    admission.ended(0)
    assert admission.open() == [3]


def test_what_is_refused_waits_for_another_to_end() -> None:
    admission = Admission(4, max_open=3)
    assert admission.open() == [0, 1, 2]
    assert admission.refused(2)
    assert admission.refused(1)
    assert admission.open() == []
    admission.ended(0)
    assert admission.open() == [1, 2], "one in its place, and one more is tried"
    assert admission.refused(2)
    assert not admission.refused(1)
    assert admission.open() == [1]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20), st.integers(1, 8), st.integers(1, 8), st.data())
def test_every_sequence_gets_its_turn(num: int, max_open: int, capacity: int, data: st.DataObject) -> None:
    admission = Admission(num, max_open)
    running: set[int] = set()
    done: list[int] = []
    offer(admission, running, capacity)
    while running:
        assert len(running) <= min(max_open, capacity)
        index = data.draw(st.sampled_from(sorted(running)))
        running.remove(index)
        done.append(index)
        admission.ended(index)
        offer(admission, running, capacity)
    assert sorted(done) == list(range(num))


def offer(admission: Admission, running: set[int], capacity: int) -> None:
    """Submits what is opened; beyond `capacity` it is refused."""
    for index in admission.open():
        if len(running) < capacity:
            running.add(index)
        else:
            assert admission.refused(index) == bool(running)
