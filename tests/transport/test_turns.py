"""What a service gets at once: bounded, in rotation between senders, and everything in the end."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos.dispatch_pb2 import Header
from tests.transport.driving import CREDENTIALS, Answers, connected, echo, expert_rows, turn_until
from transport.base import Request
from transport.errors import CallError
from transport.loop import Loop
from transport.socket import RequestServer
from transport.turns import MAX_ROWS, Turns


class Nobody:
    def reply(self, rows_TD: torch.Tensor, missing_experts: tuple[int, ...] = ()) -> None: ...

    def fail(self, error: CallError) -> None: ...


def request(num_rows: int, width: int = 1) -> Request:
    return Request(Header(), torch.empty(num_rows, width), Nobody())


SENT = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=40)


@given(SENT, st.integers(1, 20), st.integers(1, 60))
def test_every_turn_is_within_the_limits_and_each_senders_order_is_kept(
    sent: list[tuple[int, int]], max_rows: int, max_bytes: int
) -> None:
    turns, expected, got = Turns(max_rows, max_bytes), dict[int, list[Request]](), dict[int, list[Request]]()
    owner: dict[int, int] = {}
    for sender, num_rows in sent:
        one = request(num_rows)
        owner[id(one)] = sender
        expected.setdefault(sender, []).append(one)
        turns.add(sender, one)
    while turns:
        taken = turns.take()
        assert taken, "each turn gets on"
        if len(taken) > 1:
            assert sum(one.rows_TD.shape[0] for one in taken) <= max_rows
            assert sum(one.rows_TD.nbytes for one in taken) <= max_bytes
        for one in taken:
            got.setdefault(owner[id(one)], []).append(one)
    assert {sender: list(map(id, ones)) for sender, ones in got.items()} == {
        sender: list(map(id, ones)) for sender, ones in expected.items()
    }
    assert turns.take() == []


@given(st.integers(1, 30), st.integers(1, 6))
def test_a_sender_of_many_does_not_hold_up_one_of_few(num_many: int, max_rows: int) -> None:
    turns = Turns(max_rows)
    for _ in range(num_many):
        turns.add("many", request(1))
    few = request(1)
    turns.add("few", few)
    taken = [one for _ in range(2) for one in turns.take()]
    assert any(one is few for one in taken), "at the latest its second turn has it"


def test_more_than_a_turn_is_served_in_several_and_nobody_waits_for_a_sender_of_many(loop: Loop) -> None:
    batches: list[Counter[int]] = []

    def note(requests: list[Request]) -> None:
        batches.append(Counter(int(one.rows_TD[0, 0]) for one in requests))
        assert len(requests) == 1 or sum(one.rows_TD.shape[0] for one in requests) <= MAX_ROWS
        echo(requests)

    server = RequestServer(loop, "echo", CREDENTIALS, None, note)
    many, few = connected(loop, server.address), connected(loop, server.address)
    answers: dict[int, Answers] = {1: [], 2: []}
    rows_TD = {number: torch.full((MAX_ROWS // 4, 2), float(number)) for number in (1, 2)}
    for number, peer, count in ((1, many, 40), (2, few, 2)):
        for _ in range(count):
            peer.call(expert_rows(rows_TD[number]), rows_TD[number], answers[number].append)
    turn_until(lambda: len(answers[1]) == 40 and len(answers[2]) == 2, loop)
    assert all(torch.equal(one, rows_TD[1]) for one in answers[1])  # pyright: ignore[reportArgumentType]
    assert sum(map(Counter.total, batches)) == 42
    of_few = [index for index, batch in enumerate(batches) if batch[2]]
    assert max(of_few) - min(of_few) <= 2
    many.close()
    few.close()
    server.close()


def test_who_calls_while_much_is_served_does_not_wait_for_all_of_it(loop: Loop) -> None:
    batches: list[set[int]] = []

    def note(requests: list[Request]) -> None:
        batches.append({int(one.rows_TD[0, 0]) for one in requests})
        if len(batches) == 2:
            late.call(expert_rows(rows_TD[2]), rows_TD[2], answers.append)
        echo(requests)

    server = RequestServer(loop, "echo", CREDENTIALS, None, note)
    many, late = connected(loop, server.address), connected(loop, server.address)
    answers = Answers()
    rows_TD = {number: torch.full((MAX_ROWS // 4, 2), float(number)) for number in (1, 2)}
    for _ in range(40):
        many.call(expert_rows(rows_TD[1]), rows_TD[1], answers.append)
    turn_until(lambda: len(answers) == 41, loop)
    (of_late,) = [index for index, batch in enumerate(batches) if 2 in batch]
    assert of_late <= 4
    assert len(batches) >= 10
    many.close()
    late.close()
    server.close()


@pytest.mark.parametrize("over_tcp", [False, True])
def test_what_a_lost_caller_has_waiting_is_not_computed(loop: Loop, over_tcp: bool) -> None:
    num_served = [0]

    def note(requests: list[Request]) -> None:
        num_served[0] += len(requests)
        many.close()  # it has given up

    server = RequestServer(loop, "echo", CREDENTIALS, "127.0.0.1", note)
    address = replace(server.address, host_id="elsewhere") if over_tcp else server.address
    many, other = connected(loop, address), connected(loop, address)
    rows_TD = torch.zeros(MAX_ROWS // 4, 2)
    for _ in range(40):
        many.call(expert_rows(rows_TD), rows_TD, lambda answer: None)
    turn_until(lambda: server.num_callers == 1, loop)
    for _ in range(20):
        loop.run_once(0.0)
    assert 4 <= num_served[0] <= 8
    before = num_served[0]
    other.call(expert_rows(rows_TD), rows_TD, lambda answer: None)
    turn_until(lambda: num_served[0] == before + 1, loop)  # who is still there is served as ever
    other.close()
    server.close()


def test_a_request_over_the_limits_is_served_alone(loop: Loop) -> None:
    sizes: list[int] = []
    server = RequestServer(
        loop, "echo", CREDENTIALS, None, lambda requests: sizes.append(len(requests)) or echo(requests)
    )
    peer, answers = connected(loop, server.address), Answers()
    large, small = torch.zeros(MAX_ROWS + 1, 2), torch.ones(1, 2)
    for rows_TD in (small, large, small):
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
    turn_until(lambda: len(answers) == 3, loop)
    assert sum(sizes) == 3
    assert 3 not in sizes
    assert [tuple(one.shape) for one in answers] == [(1, 2), (MAX_ROWS + 1, 2), (1, 2)]  # pyright: ignore[reportAttributeAccessIssue]
    peer.close()
    server.close()
