"""The plan of fixed-size buffers: who is kept, in whose favour, and that nothing is lost uncounted.

T rows, D model dim, E experts, K chosen experts per row, C capacity, M copies that are kept.
"""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from router.capacity import combine_from_capacity, dispatch_to_capacity
from tests.router.routings import Routing, routings

CAPACITIES = st.integers(1, 12)


def served(experts_TK: Tensor, capacity: int) -> set[tuple[int, int]]:
    """The copies (row, choice) that are kept: every row's best choice before any second one, rows in their order."""
    num_rows, top_k = experts_TK.shape
    taken = Counter[int]()
    kept: set[tuple[int, int]] = set()
    for choice in range(top_k):
        for row in range(num_rows):
            expert = int(experts_TK[row, choice])
            if taken[expert] < capacity:
                taken[expert] += 1
                kept.add((row, choice))
    return kept


@given(routings(), CAPACITIES)
def test_copies_are_kept_in_the_order_of_service_and_each_has_a_slot(routing: Routing, capacity: int) -> None:
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ECD, plan = dispatch_to_capacity(rows_TD, weights_TK, experts_TK, num_experts, capacity)
    slots = plan.slots_M.tolist()
    assert len(set(slots)) == len(slots), "no slot twice"
    of_expert = Counter(slot // capacity for slot in slots)
    assert all(0 <= expert < num_experts and count <= capacity for expert, count in of_expert.items())
    choices = [
        int((experts_TK[row] == slot // capacity).nonzero())
        for row, slot in zip(plan.rows_M.tolist(), slots, strict=True)
    ]
    assert set(zip(plan.rows_M.tolist(), choices, strict=True)) == served(experts_TK, capacity)
    assert torch.equal(plan.weights_M, weights_TK[plan.rows_M, torch.tensor(choices, dtype=torch.int64)])
    assert torch.equal(sent_ECD.flatten(0, 1)[plan.slots_M], rows_TD[plan.rows_M])
    empty = sorted(set(range(num_experts * capacity)) - set(slots))
    assert not sent_ECD.flatten(0, 1)[empty].any()


@given(routings(), CAPACITIES)
def test_a_copy_is_kept_or_counted_as_dropped(routing: Routing, capacity: int) -> None:
    rows_TD, weights_TK, experts_TK, num_experts = routing
    _, plan = dispatch_to_capacity(rows_TD, weights_TK, experts_TK, num_experts, capacity)
    assert len(plan.rows_M) + plan.num_dropped == experts_TK.numel()
    assert plan.counts == [int((experts_TK == expert).sum()) for expert in range(num_experts)]
    assert plan.num_dropped == sum(max(0, count - capacity) for count in plan.counts)


@given(routings(), CAPACITIES)
def test_a_row_gets_what_its_kept_copies_are_worth(routing: Routing, capacity: int) -> None:
    """With experts that multiply by their number, the sum over the kept ones is known."""
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ECD, plan = dispatch_to_capacity(rows_TD, weights_TK, experts_TK, num_experts, capacity)
    answers_ECD = sent_ECD * (torch.arange(num_experts) + 1).view(-1, 1, 1)
    factors_T = torch.zeros(rows_TD.shape[0], dtype=torch.float64)
    for row, choice in served(experts_TK, capacity):
        factors_T[row] += weights_TK[row, choice] * (experts_TK[row, choice] + 1)
    assert torch.allclose(combine_from_capacity(plan, answers_ECD), factors_T[:, None] * rows_TD)


def test_the_worked_example() -> None:
    """The one in the docstring of router/capacity.py."""
    rows_TD, experts_TK = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0, 1], [0, 1], [0, 1]])
    sent_ECD, plan = dispatch_to_capacity(rows_TD, torch.full((3, 2), 0.5), experts_TK, 2, 2)
    assert sent_ECD.squeeze(-1).tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert (plan.counts, plan.num_dropped) == ([3, 3], 2)
