"""The gate against transformers' Mixtral router.

T rows, D model dim, E experts, K chosen experts per row, S tasks.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from router.gating import gate_weights, task_choices, top_k_gate, top_k_living, top_k_task


def theirs(rows_TD: torch.Tensor, gate_ED: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    num_experts, width = gate_ED.shape
    config = MixtralConfig(hidden_size=width, num_local_experts=num_experts, num_experts_per_tok=top_k)
    router = MixtralTopKRouter(config)
    router.weight = torch.nn.Parameter(gate_ED, requires_grad=False)
    _, weights_TK, experts_TK = router(rows_TD)
    return weights_TK, experts_TK


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (4, 1), (5, 3), (6, 6), (16, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_experts_and_weights_as_transformers(
    num_experts: int, top_k: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(200, 48, generator=generator).to(dtype)
    gate_ED = (torch.randn(num_experts, 48, generator=generator) / 7).to(dtype)
    weights_TK, experts_TK = top_k_gate(rows_TD, gate_ED, top_k)
    expected_weights_TK, expected_experts_TK = theirs(rows_TD, gate_ED, top_k)
    assert weights_TK.dtype == torch.float32
    assert torch.allclose(weights_TK, expected_weights_TK, atol=1e-5)
    # bf16 logits can be equal; which of two equals is first (or chosen at all) is then not determined.
    differing_T = (experts_TK != expected_experts_TK).any(-1)
    logits_TE = torch.nn.functional.linear(rows_TD, gate_ED)[differing_T]
    tied_T = torch.tensor([len(set(logits_E.tolist())) < num_experts for logits_E in logits_TE], dtype=torch.bool)
    assert bool(tied_T.all())
    assert dtype == torch.bfloat16 or not bool(differing_T.any())


def test_a_routers_gate_decides_before_rounding(seed: int) -> None:
    """bfloat16 rows are routed as their exact values would be in float32."""
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(200, 48, generator=generator).bfloat16()
    gate_ED = (torch.randn(8, 48, generator=generator) / 7).bfloat16()
    weights_TK, experts_TK = top_k_gate(rows_TD, gate_weights(gate_ED), 2)
    expected_weights_TK, expected_experts_TK = theirs(rows_TD.float(), gate_ED.float(), 2)
    assert torch.allclose(weights_TK, expected_weights_TK, atol=1e-5)
    assert torch.equal(experts_TK, expected_experts_TK)


def test_a_routers_gate_keeps_float64() -> None:
    gate_ED = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(gate_weights(gate_ED), gate_ED)


def test_weights_sum_to_one_and_come_best_first(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(50, 16, generator=generator)
    weights_TK, experts_TK = top_k_gate(rows_TD, torch.randn(8, 16, generator=generator), 3)
    assert torch.allclose(weights_TK.sum(-1), torch.ones(50))
    assert bool((weights_TK.diff(dim=-1) <= 0).all())
    assert all(len(set(chosen)) == 3 for chosen in experts_TK.tolist())


def test_large_logits_do_not_overflow() -> None:
    weights_TK, _ = top_k_gate(torch.tensor([[1e30, 0.0]]), torch.tensor([[1e8, 0.0], [-1e8, 0.0], [0.0, 1.0]]), 2)
    assert weights_TK.tolist() == [[1.0, 0.0]]


def test_float64_rows_keep_their_precision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    weights_TK, _ = top_k_gate(rows_TD, torch.randn(5, 4, dtype=torch.float64, generator=generator), 2)
    assert weights_TK.dtype == torch.float64


def plain_gate(logits_E: list[float], top_k: int, missing: set[int]) -> dict[int, float]:
    """Expert -> weight, one row, in plain Python numbers."""
    masked = [-math.inf if expert in missing else logit for expert, logit in enumerate(logits_E)]
    chosen = sorted(range(len(masked)), key=masked.__getitem__, reverse=True)[: min(top_k, len(masked) - len(missing))]
    shares = {expert: math.exp(masked[expert] - masked[chosen[0]]) for expert in chosen}
    return {expert: share / sum(shares.values()) for expert, share in shares.items()}


@given(st.data())
def test_without_missing_experts_the_best_of_the_others_share_the_weight(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(2, 9))
    top_k = data.draw(st.integers(1, num_experts))
    missing = data.draw(st.sets(st.integers(0, num_experts - 1), max_size=num_experts - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    rows_TD = torch.randn(20, 12, dtype=torch.float64, generator=generator)
    gate_ED = torch.randn(num_experts, 12, dtype=torch.float64, generator=generator)
    weights_TK, experts_TK = top_k_living(rows_TD, gate_ED, top_k, missing)
    assert experts_TK.shape == weights_TK.shape == (20, min(top_k, num_experts - len(missing)))
    assert bool((weights_TK.diff(dim=-1) <= 0).all()), "best first"
    for row_D, weights_K, experts_K in zip(rows_TD, weights_TK.tolist(), experts_TK.tolist(), strict=True):
        logits_E = [sum(x * w for x, w in zip(row_D.tolist(), gate_D, strict=True)) for gate_D in gate_ED.tolist()]
        expected = plain_gate(logits_E, top_k, missing)
        assert dict(zip(experts_K, weights_K, strict=True)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_without_missing_experts_decides_in_the_gates_dtype(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(200, 48, generator=generator).to(dtype)
    gate_ED = gate_weights((torch.randn(8, 48, generator=generator) / 7).to(dtype))
    weights_TK, experts_TK = top_k_living(rows_TD, gate_ED, 2, {0, 5})
    expected_weights_TK, places_TK = theirs(rows_TD.float(), gate_ED[[1, 2, 3, 4, 6, 7]], 2)
    assert weights_TK.dtype == torch.float32
    assert torch.allclose(weights_TK, expected_weights_TK, atol=1e-5)
    assert torch.equal(experts_TK, torch.tensor([1, 2, 3, 4, 6, 7])[places_TK])


@given(st.data())
def test_a_tasks_logits_choose_for_all_its_rows(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(2, 9))
    top_k = data.draw(st.integers(1, num_experts))
    missing = data.draw(st.sets(st.integers(0, num_experts - 1), max_size=num_experts - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    task_gate_SE = torch.randn(3, num_experts, dtype=torch.float64, generator=generator)
    weights_SK, experts_SK = task_choices(task_gate_SE, top_k, missing)
    for logits_E, weights_K, experts_K in zip(task_gate_SE.tolist(), weights_SK, experts_SK, strict=True):
        expected = plain_gate(logits_E, top_k, missing)
        assert dict(zip(experts_K.tolist(), weights_K.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12)
    tasks_T = torch.tensor([2, 0, 0, 1, 2])
    weights_SK, experts_SK = task_choices(task_gate_SE, top_k)
    weights_TK, experts_TK = top_k_task(tasks_T, task_gate_SE, top_k)
    assert torch.equal(weights_TK, weights_SK[tasks_T])
    assert torch.equal(experts_TK, experts_SK[tasks_T])


def test_a_task_gate_in_bfloat16_gives_weights_in_float32() -> None:
    weights_SK, experts_SK = task_choices(torch.tensor([[1.0, 0.0, 2.0]]).bfloat16(), 2)
    assert (weights_SK.dtype, experts_SK.dtype, experts_SK.tolist()) == (torch.float32, torch.int64, [[2, 0]])


def test_gradients_reach_the_gates_and_the_rows() -> None:
    """Training calls the very same functions."""
    rows_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gate_ED = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows, gate: top_k_gate(rows, gate, 2)[0], (rows_TD, gate_ED))
    task_gate_SE = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    tasks_T = torch.tensor([1, 1, 0])
    assert torch.autograd.gradcheck(lambda gate: top_k_task(tasks_T, gate, 2)[0], (task_gate_SE,))
