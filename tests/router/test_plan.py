"""The dispatch plan: every copy is sent once, and its answer comes back to its row.

T rows, D model dim, E experts, K chosen experts per row, N = T*K row copies.
"""

import torch
from hypothesis import given

from router.plan import combine, dispatch
from tests.router.routings import Routing, routings


@given(routings())
def test_every_copy_is_sent_once_to_its_expert(routing: Routing) -> None:
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, num_experts)
    assert plan.counts == [int((experts_TK == expert).sum()) for expert in range(num_experts)]
    for expert, part_ND in enumerate(sent_ND.split(plan.counts)):
        chose_T = (experts_TK == expert).any(-1)
        assert torch.equal(part_ND, rows_TD[chose_T]), "its rows, in row order"
    assert plan.place_N is not None
    assert sorted(plan.place_N.tolist()) == list(range(experts_TK.numel()))


@given(routings())
def test_answers_come_back_to_their_rows(routing: Routing) -> None:
    """With experts that multiply by their number, the sum over the chosen ones is known."""
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, num_experts)
    answers_ND = torch.cat([part * (expert + 1) for expert, part in enumerate(sent_ND.split(plan.counts))])
    factors_T = (weights_TK * (experts_TK + 1)).sum(-1)
    assert torch.allclose(combine(plan, answers_ND), factors_T[:, None] * rows_TD)


@given(routings())
def test_with_experts_that_do_nothing_a_row_comes_back_weighted(routing: Routing) -> None:
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, num_experts)
    assert torch.allclose(combine(plan, sent_ND), weights_TK.sum(-1, keepdim=True) * rows_TD)


def test_the_worked_example() -> None:
    """The one in the docstring of router/plan.py."""
    rows_TD = torch.tensor([[10.0], [20.0]])
    weights_TK = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    sent_ND, plan = dispatch(rows_TD, weights_TK, torch.tensor([[2, 0], [0, 1]]), 3)
    assert sent_ND.flatten().tolist() == [10.0, 20.0, 20.0, 10.0]
    assert plan.counts == [2, 1, 1]
    assert plan.place_N is not None
    assert plan.place_N.tolist() == [3, 0, 1, 2]
    answers_ND = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # expert 0 twice, expert 1, expert 2
    assert combine(plan, answers_ND).flatten().tolist() == [0.75 * 4 + 0.25 * 1, 0.5 * 2 + 0.5 * 3]


def test_the_answer_has_the_answers_dtype() -> None:
    rows_TD = torch.ones(2, 4, dtype=torch.bfloat16)
    weights_TK = torch.full((2, 2), 0.5)
    sent_ND, plan = dispatch(rows_TD, weights_TK, torch.tensor([[0, 1], [1, 0]]), 2)
    assert sent_ND.dtype == torch.bfloat16
    assert combine(plan, sent_ND).dtype == torch.bfloat16
    assert combine(plan, sent_ND.float()).dtype == torch.float32
