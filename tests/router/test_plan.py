"""The dispatch plan: every copy is sent once, and comes back to its row, values and gradients alike.

T rows, D model dim, E experts, K chosen experts per row, N = T*K row copies.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from router.gating import top_k_gate
from router.plan import combine, dispatch


@st.composite
def routings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows (each with values of its own), weights, the experts chosen, how many experts there are."""
    num_experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, num_experts))
    num_rows = draw(st.integers(1, 12))
    choices = [draw(st.permutations(range(num_experts)))[:top_k] for _ in range(num_rows)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weights_TK = torch.rand(num_rows, top_k, dtype=torch.float64, generator=generator)
    rows_TD = torch.randn(num_rows, 3, dtype=torch.float64, generator=generator)
    return rows_TD, weights_TK, torch.tensor(choices), num_experts


@given(routings())
def test_every_copy_is_sent_once_to_its_expert(routing: tuple[Tensor, Tensor, Tensor, int]) -> None:
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, num_experts)
    assert plan.counts == [int((experts_TK == expert).sum()) for expert in range(num_experts)]
    for expert, part_ND in enumerate(sent_ND.split(plan.counts)):
        chose_T = (experts_TK == expert).any(-1)
        assert torch.equal(part_ND, rows_TD[chose_T]), "its rows, in row order"
    assert plan.place_N is not None
    assert sorted(plan.place_N.tolist()) == list(range(experts_TK.numel()))


@given(routings())
def test_answers_come_back_to_their_rows(routing: tuple[Tensor, Tensor, Tensor, int]) -> None:
    """With experts that multiply by their number, the sum over the chosen ones is known."""
    rows_TD, weights_TK, experts_TK, num_experts = routing
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, num_experts)
    answers_ND = torch.cat([part * (expert + 1) for expert, part in enumerate(sent_ND.split(plan.counts))])
    factors_T = (weights_TK * (experts_TK + 1)).sum(-1)
    assert torch.allclose(combine(plan, answers_ND), factors_T[:, None] * rows_TD)


@given(routings())
def test_with_experts_that_do_nothing_a_row_comes_back_weighted(routing: tuple[Tensor, Tensor, Tensor, int]) -> None:
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


def moe(rows_TD: Tensor, gate_ED: Tensor, experts_EDD: Tensor, top_k: int) -> Tensor:
    """A layer of linear experts through the plan, as training uses it."""
    weights_TK, experts_TK = top_k_gate(rows_TD, gate_ED, top_k)
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, gate_ED.shape[0])
    parts = [part @ experts_EDD[expert] for expert, part in enumerate(sent_ND.split(plan.counts))]
    return combine(plan, torch.cat(parts))


def naive_moe(rows_TD: Tensor, gate_ED: Tensor, experts_EDD: Tensor, top_k: int) -> Tensor:
    outputs: list[Tensor] = []
    for row_D in rows_TD:
        chosen_K, experts_K = (gate_ED @ row_D).topk(top_k)
        weights_K = chosen_K.softmax(0)
        outputs.append(sum(w * (row_D @ experts_EDD[e]) for w, e in zip(weights_K, experts_K.tolist(), strict=True)))  # pyright: ignore[reportArgumentType]
    return torch.stack(outputs)


def moe_inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (6, 4), (5, 4), (5, 4, 4)
    rows_TD, gate_ED, experts_EDD = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes)
    return rows_TD.requires_grad_(), gate_ED.requires_grad_(), experts_EDD.requires_grad_()


def test_gradients_flow_through_dispatch_and_combine(seed: int) -> None:
    inputs = moe_inputs(seed)
    output_TD, expected_TD = moe(*inputs, 2), naive_moe(*inputs, 2)
    assert torch.allclose(output_TD, expected_TD)
    weighting_TD = torch.randn(output_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad((output_TD * weighting_TD).sum(), inputs)
    expected = torch.autograd.grad((expected_TD * weighting_TD).sum(), inputs)
    for gradient, naive in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, naive, atol=1e-12)
        assert float(gradient.abs().sum()) > 0


def test_gradients_pass_gradcheck_where_the_choice_of_experts_is_fixed(seed: int) -> None:
    rows_TD, _, experts_EDD = moe_inputs(seed)
    generator = torch.Generator().manual_seed(seed)
    weights_TK = torch.rand(6, 2, dtype=torch.float64, generator=generator).requires_grad_()
    experts_TK = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(6)])

    def layer(rows: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        sent_ND, plan = dispatch(rows, weights, experts_TK, 5)
        parts = [part @ experts[expert] for expert, part in enumerate(sent_ND.split(plan.counts))]
        return combine(plan, torch.cat(parts))

    assert torch.autograd.gradcheck(layer, (rows_TD, weights_TK, experts_EDD))
