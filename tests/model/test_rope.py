"""Rotary embedding against transformers' module, and the table's growth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding, apply_rotary_pos_emb

from model.rope import RotaryTable, apply_rope_

HEAD_DIM, THETA, MAX_CONTEXT = 16, 1e6, 40_000


def turned(x_THS: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A turned copy."""
    result_THS = x_THS.clone()
    apply_rope_(result_THS, *rows)
    return result_THS


def transformers_rope(x_THS: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
    """The same rotation by transformers; its layout is [batch, heads, tokens, head dim]."""
    heads, head_dim = x_THS.shape[1:]
    config = MixtralConfig(
        num_attention_heads=heads,
        hidden_size=heads * head_dim,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
    )
    x = x_THS.transpose(0, 1).unsqueeze(0)
    cos, sin = MixtralRotaryEmbedding(config)(x, positions_T.unsqueeze(0))
    rotated, _ = apply_rotary_pos_emb(x, x, cos, sin)
    return rotated.squeeze(0).transpose(0, 1)


@settings(deadline=None, max_examples=40)
@given(
    positions=st.lists(st.integers(0, MAX_CONTEXT - 1), min_size=1, max_size=9),
    heads=st.integers(1, 5),
    head_dim=st.sampled_from([2, 4, 16, 128]),
    seed=st.integers(0, 2**31),
)
def test_equals_transformers_in_float32(positions: list[int], heads: int, head_dim: int, seed: int) -> None:
    x_THS = torch.randn(len(positions), heads, head_dim, generator=torch.Generator().manual_seed(seed))
    positions_T = torch.tensor(positions)
    rows = RotaryTable(head_dim, THETA, MAX_CONTEXT).rows(positions_T)
    torch.testing.assert_close(turned(x_THS, rows), transformers_rope(x_THS, positions_T), rtol=1e-6, atol=1e-6)


def test_bfloat16_is_within_its_rounding() -> None:
    x_THS = torch.randn(64, 6, HEAD_DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    positions_T = torch.arange(64) * 500
    rows = RotaryTable(HEAD_DIM, THETA, MAX_CONTEXT, dtype=torch.bfloat16).rows(positions_T)
    result_THS = turned(x_THS, rows)
    assert result_THS.dtype == torch.bfloat16
    torch.testing.assert_close(result_THS, transformers_rope(x_THS, positions_T), rtol=1.6e-2, atol=1.6e-2)


def test_turns_a_view_of_the_projection_and_leaves_the_rest_alone() -> None:
    """Query and key heads are the first columns of the joint projection; value heads follow."""
    qkv = torch.randn(5, 8 * HEAD_DIM, generator=torch.Generator().manual_seed(2))
    before = qkv.clone()
    qk_THS = qkv[:, : 6 * HEAD_DIM].view(5, 6, HEAD_DIM)
    rows = RotaryTable(HEAD_DIM, THETA, MAX_CONTEXT).rows(torch.arange(5))
    expected_THS = turned(qk_THS.contiguous(), rows)
    apply_rope_(qk_THS, *rows)
    torch.testing.assert_close(qk_THS, expected_THS, rtol=0, atol=0)
    values = slice(6 * HEAD_DIM, None)
    torch.testing.assert_close(qkv[:, values], before[:, values], rtol=0, atol=0)


def test_table_starts_empty_and_grows_to_the_context() -> None:
    table = RotaryTable(HEAD_DIM, THETA, MAX_CONTEXT)
    assert table.num_positions == 0
    first, _ = table.rows(torch.tensor([3]))
    assert table.num_positions == 1024
    table.rows(torch.tensor([1500]))
    assert table.num_positions == 2048
    table.rows(torch.tensor([0]), stop=MAX_CONTEXT)
    assert table.num_positions == MAX_CONTEXT
    torch.testing.assert_close(table.rows(torch.tensor([3]))[0], first, rtol=0, atol=0)


def test_no_positions_and_positions_past_the_context() -> None:
    table = RotaryTable(HEAD_DIM, THETA, 32)
    assert table.rows(torch.empty(0, dtype=torch.int64))[0].shape == (0, HEAD_DIM)
    assert table.rows(torch.tensor([31]))[0].shape == (1, HEAD_DIM)
    with pytest.raises(ValueError, match=r"position 32 was asked for.*ends at 32"):
        table.rows(torch.tensor([32]))
