"""The weights as laid out here, with this project's norm and rotary embedding, compute transformers' logits.

A plain forward pass with no cache and no batching: what is under test is every layout (query, key and value rows, the
rotated halves, gate and up rows, columns that add up), not speed.
Shapes: T tokens, D model dim, F expert hidden dim, K chosen experts, H query heads, G key/value heads, S head dim.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from checkpoint.reader import CheckpointReader
from checkpoint.weights import (
    AttentionLayerWeights,
    ExpertLayerWeights,
    read_attention_weights,
    read_expert_layer,
    read_gates,
)
from model.config import MixtralConfig, read_config
from model.norm import rms_norm
from model.rope import RotaryTable, apply_rope_
from tests.random_checkpoint import make_checkpoint

FP32 = torch.float32


def attend(x_TD: torch.Tensor, weights: AttentionLayerWeights, config: MixtralConfig) -> torch.Tensor:
    num_tokens, heads, groups = len(x_TD), config.num_heads, config.num_kv_heads
    qkv_THS = (x_TD @ weights.qkv_ND.T).view(num_tokens, heads + 2 * groups, config.head_dim)
    rows = RotaryTable(config.head_dim, config.rope_theta, config.max_context).rows(torch.arange(num_tokens))
    apply_rope_(qkv_THS[:, : heads + groups], *rows)
    q, k, v = (part.transpose(0, 1) for part in qkv_THS.split((heads, groups, groups), dim=1))
    distance_TT = torch.arange(num_tokens).unsqueeze(1) - torch.arange(num_tokens)
    seen_TT = (distance_TT >= 0) & (distance_TT < (config.window or num_tokens))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT, enable_gqa=True)
    return out.transpose(0, 1).reshape(num_tokens, -1) @ weights.output_DM.T


def feed_forward(x_TD: torch.Tensor, halves: list[ExpertLayerWeights]) -> torch.Tensor:
    """Disjoint columns of one expert; their outputs add up."""
    total_TD = torch.zeros_like(x_TD)
    for half in halves:
        gate_TF, up_TF = (x_TD @ half.gate_up_2FD.T).chunk(2, dim=-1)
        total_TD += (F.silu(gate_TF) * up_TF) @ half.down_DF.T
    return total_TD


def forward(directory: Path, tokens_T: torch.Tensor) -> torch.Tensor:
    config, reader = read_config(directory), CheckpointReader(directory)
    weights, gates = read_attention_weights(reader, config, FP32), read_gates(reader, config, FP32)
    x_TD = weights.embedding_VD[tokens_T]
    for index, layer in enumerate(weights.layers):
        x_TD = x_TD + attend(rms_norm(x_TD, layer.input_norm_D, config.norm_eps), layer, config)
        rows_TD = rms_norm(x_TD, layer.post_norm_D, config.norm_eps)
        logits_TK, chosen_TK = (rows_TD @ gates[index].T).topk(config.top_k)
        share_TK = logits_TK.softmax(-1)
        for expert in range(config.num_experts):
            halves = [
                read_expert_layer(reader, config, index, expert, FP32, columns)
                for columns in (slice(0, 40), slice(40, config.ffn_size))
            ]
            share_T1 = (share_TK * (chosen_TK == expert)).sum(-1, keepdim=True)
            x_TD = x_TD + share_T1 * feed_forward(rows_TD, halves)
    return rms_norm(x_TD, weights.final_norm_D, config.norm_eps) @ weights.lm_head_VD.T


@pytest.mark.parametrize("fused_names", [False, True])
@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim", "window", "num_experts", "top_k", "tie"),
    [(2, None, None, 8, 2, False), (4, 8, 16, 5, 3, True), (1, 32, 7, 3, 1, False)],
)
def test_logits_equal_transformers(
    tmp_path: Path,
    seed: int,
    fused_names: bool,
    num_kv_heads: int,
    head_dim: int | None,
    window: int | None,
    num_experts: int,
    top_k: int,
    tie: bool,
) -> None:
    model = make_checkpoint(
        tmp_path,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        window=window,
        num_experts=num_experts,
        top_k=top_k,
        tie=tie,
        fused_names=fused_names,
        seed=seed,
        with_tokenizer=False,
    )
    tokens_T = torch.randint(0, 320, (50,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected_TV = model(tokens_T.unsqueeze(0)).logits[0]
    torch.testing.assert_close(forward(tmp_path, tokens_T), expected_TV, rtol=1e-4, atol=1e-4)
