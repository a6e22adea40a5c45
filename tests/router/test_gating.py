"""The gate against transformers' Mixtral router.

T rows, D model dim, E experts, K chosen experts per row.
"""

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from router.gating import gate_weights, top_k_gate


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
