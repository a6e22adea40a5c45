"""One layer's rows on their way through the experts: what is sent where, and how answers are put together.

T rows, D model dim, K chosen experts per row, N = T*K row copies.
"""

import itertools

import pytest
import torch
from torch import Tensor

from router.exchange import Exchange, Part, expert_ranges
from router.plan import dispatch
from tests.router.fleet import Answers, cut, layer_request
from transport.errors import CallError
from transport.table import ShardEntry


def start(experts_TK: Tensor, num_experts: int, per_actor: int, num_slices: int) -> tuple[Exchange, Answers, Tensor]:
    """An exchange whose rows are 1, 2, 3...; weights are all 1."""
    rows_TD = torch.arange(1.0, experts_TK.shape[0] + 1)[:, None].repeat(1, 2)
    request, answers = layer_request(3, rows_TD)
    sent_ND, plan = dispatch(rows_TD, torch.ones(experts_TK.shape), experts_TK, num_experts)
    ranges = expert_ranges(cut(num_experts, per_actor, num_slices), num_experts)
    return Exchange(request, sent_ND, plan, ranges), answers, rows_TD


def described(part: Part) -> tuple[tuple[int, ...], list[int], list[int], list[float]]:
    rows = part.header.expert_rows
    assert rows.layer == 3
    assert (rows.rows.num_rows, rows.rows.width) == tuple(part.rows_ND.shape)
    return part.shard.expert_ids, list(rows.expert_ids), list(rows.num_rows_per_expert), part.rows_ND[:, 0].tolist()


def test_each_shard_gets_its_experts_rows_and_an_empty_one_gets_no_message() -> None:
    exchange, _, _ = start(torch.tensor([[0, 5], [5, 4], [0, 1]]), num_experts=8, per_actor=2, num_slices=1)
    assert [described(part) for part in exchange.parts] == [
        ((0, 1), [0, 1], [2, 1], [1.0, 3.0, 3.0]),
        ((4, 5), [4, 5], [1, 2], [2.0, 1.0, 2.0]),
    ]


def test_an_expert_without_rows_is_not_named() -> None:
    exchange, _, _ = start(torch.tensor([[1, 2]]), num_experts=3, per_actor=3, num_slices=1)
    assert [described(part) for part in exchange.parts] == [((0, 1, 2), [1, 2], [1, 1], [1.0, 1.0])]


def test_every_slice_gets_the_same_rows() -> None:
    exchange, _, _ = start(torch.tensor([[0, 1], [1, 0]]), num_experts=2, per_actor=1, num_slices=2)
    assert [(part.shard.expert_ids, part.shard.slice_index) for part in exchange.parts] == [
        ((0,), 0),
        ((0,), 1),
        ((1,), 0),
        ((1,), 1),
    ]
    assert all(part.rows_ND[:, 0].tolist() == [1.0, 2.0] for part in exchange.parts)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_slices_are_summed_in_order_whatever_order_they_arrive_in(order: tuple[int, ...]) -> None:
    """In float32, (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1: only one order gives 0."""
    exchange, answers, rows_TD = start(torch.tensor([[0], [0]]), num_experts=1, per_actor=1, num_slices=3)
    values = (1e8, 1.0, -1e8)
    for index in order:
        exchange.take(exchange.parts[index], torch.full_like(rows_TD, values[index]))
    assert answers.rows.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_reply_comes_with_the_last_answer(order: tuple[int, ...]) -> None:
    exchange, answers, rows_TD = start(torch.tensor([[0, 3], [2, 1]]), num_experts=4, per_actor=1, num_slices=1)
    for place, index in enumerate(order):
        assert exchange.finished is False
        assert len(answers.received) == 0, place
        part = exchange.parts[index]
        exchange.take(part, part.rows_ND * (part.shard.expert_ids[0] + 1))
    assert exchange.finished
    assert torch.equal(answers.rows, rows_TD * torch.tensor([[1.0 + 4], [3.0 + 2]]))


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (4, 2), (0, 2)])
def test_an_answer_of_another_shape_fails_the_request(shape: tuple[int, int]) -> None:
    exchange, answers, _ = start(torch.tensor([[0], [0]]), num_experts=1, per_actor=1, num_slices=1)
    exchange.take(exchange.parts[0], torch.zeros(shape))
    assert answers.error.code == "internal"
    assert f"answered rows of shape {shape} to rows of shape (2, 2)" in answers.error.message


def test_only_the_first_failure_is_answered_and_nothing_after_it() -> None:
    exchange, answers, _ = start(torch.tensor([[0, 1]]), num_experts=2, per_actor=1, num_slices=1)
    exchange.fail(CallError("expert_unavailable", "first"))
    exchange.fail(CallError("internal", "second"))
    for part in exchange.parts:
        exchange.take(part, part.rows_ND)
    assert answers.error.message == "first"


def entry(first: int, last: int, index: int = 0, num_slices: int = 1) -> ShardEntry:
    return ShardEntry(tuple(range(first, last + 1)), index, num_slices)


def test_ranges_come_in_expert_order_and_slices_in_theirs() -> None:
    shards = [entry(2, 3, 1, 2), entry(4, 4), entry(0, 1), entry(2, 3, 0, 2)]
    ranges = expert_ranges(shards, 5)
    assert [found.expert_ids for found in ranges] == [(0, 1), (2, 3), (4,)]
    assert [[shard.slice_index for shard in found.shards] for found in ranges] == [[0], [0, 1], [0]]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], r"the shards hold experts \[\]; needed: each of 0 to 3, once"),
        ([entry(0, 1)], "needed: each of 0 to 3, once"),
        ([entry(0, 1), entry(3, 3)], "needed: each of 0 to 3, once"),
        ([entry(0, 1), entry(1, 3)], "needed: each of 0 to 3, once"),
        ([entry(0, 4)], "needed: each of 0 to 3, once"),
        ([entry(0, 3, 0, 2)], "slices 0 of 2; needed"),
        ([entry(0, 3, 1, 2)], "slices 1 of 2; needed"),
        ([entry(0, 3, 0, 2), entry(0, 3, 2, 2)], "slices 0 of 2, 2 of 2; needed"),
        ([entry(0, 3, 0, 2), entry(0, 3, 1, 3)], "slices 0 of 2, 1 of 3; needed"),
        ([entry(0, 3), entry(0, 3)], "slices 0 of 1, 0 of 1; needed"),
        ([entry(0, 3, 0, 2), entry(0, 3, 1, 2), entry(0, 3, 1, 2)], "1 of 2, 1 of 2; needed"),
    ],
)
def test_shards_that_do_not_cover_the_experts_are_refused(shards: list[ShardEntry], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_ranges(shards, 4)
