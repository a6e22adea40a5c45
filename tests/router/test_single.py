"""A lone row takes a way of its own through the router: it must come out as if it had company.

D model dim, E experts, K chosen experts.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.gating import gate_weights, top_k_gate
from router.plan import combine, dispatch
from router.single import route_row

WIDTH = 24


@given(st.data())
def test_it_is_sent_and_combined_as_any_row(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 16))
    top_k = data.draw(st.integers(1, num_experts))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    gate_ED = gate_weights(torch.randn(num_experts, WIDTH, generator=generator).to(dtype))
    row_1D = torch.randn(1, WIDTH, generator=generator).to(dtype)
    gate_row_1D = data.draw(st.sampled_from([row_1D, torch.randn(1, WIDTH, generator=generator).to(dtype)]))
    sent_KD, plan = route_row(row_1D, gate_row_1D, gate_ED, top_k)
    expected_KD, expected = dispatch(row_1D, *top_k_gate(gate_row_1D, gate_ED, top_k), num_experts)
    assert torch.equal(sent_KD, expected_KD)
    assert plan.counts == expected.counts
    answers_KD = torch.randn(top_k, WIDTH, generator=generator).to(dtype)
    combined, combined_before = combine(plan, answers_KD), combine(expected, answers_KD)
    assert combined.dtype == dtype
    assert plan.weights_TK.dtype == expected.weights_TK.dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float64: 1e-12}[dtype]
    assert torch.allclose(combined, combined_before, atol=tolerance)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_comes_back_as_none(value: float) -> None:
    """As with many rows; it must not end the router, whose other requests are well."""
    row_1D = torch.full((1, WIDTH), value)
    sent_KD, plan = route_row(row_1D, row_1D, torch.randn(5, WIDTH), 2)
    assert sum(plan.counts) == 2
    assert bool(combine(plan, sent_KD).isnan().any())


def test_large_logits_do_not_overflow() -> None:
    gate_ED = torch.tensor([[1e8, 0.0], [-1e8, 0.0], [0.0, 1.0]])
    row_1D = torch.tensor([[1e30, 0.0]])
    _, plan = route_row(row_1D, row_1D, gate_ED, 2)
    assert plan.counts == [1, 0, 1]
    assert plan.weights_TK.tolist() == [[1.0, 0.0]]
