"""Rows on their way to experts and back: values as the dispatch plan has them, gradients as torch's own operations.

T rows, D model dim, E experts, K chosen experts per row, N = T*K row copies.
"""

import pytest
import torch
from torch import Tensor

from router.gating import top_k_gate
from router.plan import combine, dispatch
from training.copies import combine_copies, copies_of, copy_rows

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs_of(seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    shapes = (6, 4), (5, 4), (5, 4, 4)
    rows_TD, gate_ED, experts_EDD = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes)
    return rows_TD.requires_grad_(), gate_ED.requires_grad_(), experts_EDD.requires_grad_()


def moe(rows_TD: Tensor, gate_ED: Tensor, experts_EDD: Tensor, top_k: int) -> Tensor:
    """A layer of linear experts."""
    weights_TK, experts_TK = top_k_gate(rows_TD, gate_ED, top_k)
    return with_chosen(rows_TD, weights_TK, experts_TK, experts_EDD)


def with_chosen(rows_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, experts_EDD: Tensor) -> Tensor:
    copies = copies_of(experts_TK, experts_EDD.shape[0])
    parts_ND = copy_rows(rows_TD, copies).split(copies.counts)
    answers_ND = torch.cat([part @ experts_EDD[expert] for expert, part in enumerate(parts_ND)])
    return combine_copies(answers_ND, weights_TK, copies)


def naive_moe(rows_TD: Tensor, gate_ED: Tensor, experts_EDD: Tensor, top_k: int) -> Tensor:
    outputs: list[Tensor] = []
    for row_D in rows_TD:
        chosen_K, experts_K = (gate_ED @ row_D).topk(top_k)
        weights_K = chosen_K.softmax(0)
        terms = [w * (row_D @ experts_EDD[e]) for w, e in zip(weights_K, experts_K.tolist(), strict=True)]
        outputs.append(torch.stack(terms).sum(0))
    return torch.stack(outputs)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_outputs_and_gradients_are_the_naive_ones(top_k: int, seed: int) -> None:
    inputs = inputs_of(seed)
    output_TD, expected_TD = moe(*inputs, top_k), naive_moe(*inputs, top_k)
    assert torch.allclose(output_TD, expected_TD)
    weighting_TD = torch.randn(output_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad((output_TD * weighting_TD).sum(), inputs)
    expected = torch.autograd.grad((expected_TD * weighting_TD).sum(), inputs)
    for gradient, naive, what in zip(gradients, expected, ("rows", "gate", "experts"), strict=True):
        assert torch.allclose(gradient, naive, atol=1e-12), what
        # The weight of a single expert is 1, whatever the gate says.
        assert (float(gradient.abs().sum()) > 0) == (what != "gate" or top_k > 1), what


def test_gradients_pass_gradcheck_where_the_choice_of_experts_is_fixed(seed: int) -> None:
    rows_TD, _, experts_EDD = inputs_of(seed)
    generator = torch.Generator().manual_seed(seed)
    weights_TK = torch.rand(6, 2, dtype=torch.float64, generator=generator).requires_grad_()
    experts_TK = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(6)])
    assert torch.autograd.gradcheck(
        lambda rows, weights, experts: with_chosen(rows, weights, experts_TK, experts),
        (rows_TD, weights_TK, experts_EDD),
    )


def test_values_are_those_of_the_plan_that_serving_uses(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(7, 3, generator=generator)
    weights_TK, experts_TK = top_k_gate(rows_TD, torch.randn(4, 3, generator=generator), 2)
    sent_ND, plan = dispatch(rows_TD, weights_TK, experts_TK, 4)
    copies = copies_of(experts_TK, 4)
    assert copies.counts == plan.counts
    assert torch.equal(copy_rows(rows_TD, copies), sent_ND)
    assert torch.equal(combine_copies(sent_ND, weights_TK, copies), combine(plan, sent_ND))


def test_a_rank_without_rows() -> None:
    rows_TD = torch.zeros(0, 3, requires_grad=True)
    weights_TK = torch.zeros(0, 2, requires_grad=True)
    copies = copies_of(torch.zeros(0, 2, dtype=torch.int64), 4)
    output_TD = combine_copies(copy_rows(rows_TD, copies), weights_TK, copies)
    output_TD.sum().backward()
    assert output_TD.shape == (0, 3)
    assert rows_TD.grad is not None
    assert weights_TK.grad is not None
    assert (rows_TD.grad.shape, weights_TK.grad.shape) == ((0, 3), (0, 2))
