"""The queue of a node against a plain list that is sorted anew each time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention.sequence import Sequence
from attention.waiting import WaitingQueue
from protos.generation_pb2 import Sampling

ACTIONS = st.lists(st.tuples(st.sampled_from(["add", "put_back", "pop", "remove"]), st.integers(-2, 2)), max_size=40)


def make_sequence(key: int, priority: int) -> Sequence:
    return Sequence(key, [0], 1, Sampling(), 1, arrival_s=0.0, priority=priority)


@given(ACTIONS)
def test_the_lowest_value_first_and_equals_in_order(actions: list[tuple[str, int]]) -> None:
    queue, plain = WaitingQueue(), list[Sequence]()
    for key, (action, number) in enumerate(actions):
        if action == "add":
            plain.append(make_sequence(key, number))
            queue.add(plain[-1])
        elif action == "put_back":
            plain.insert(0, make_sequence(key, number))
            queue.put_back(plain[0])
        elif plain and action == "pop":
            assert queue.first is plain[0]
            assert queue.pop_first() is plain.pop(0)
        elif plain:
            queue.remove(plain.pop(number % len(plain)))
        plain.sort(key=lambda sequence: sequence.priority)  # stable
        assert [each.key for each in queue] == [each.key for each in plain]
        assert len(queue) == len(plain)


def test_what_does_not_wait_cannot_be_taken_out() -> None:
    with pytest.raises(StopIteration):
        WaitingQueue().remove(make_sequence(1, 0))
