"""Attention over whole training sequences, several documents in one where they are packed.

B sequences, L positions of one, T = B*L rows, D model dim, H query heads, G key/value heads, S head dim, W window.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MixtralConfig


@dataclass(frozen=True)
class AttentionPlan:
    """What every layer's attention of a step shares.

    Args:
        cos_BLS, signed_sin_BLS: Each position's rotation (`model.rope`), in the dtype that is computed in.
        mask_BLL: 0 where a query sees a key, minus infinity elsewhere; None: all keys up to its own position.
    """

    cos_BLS: Tensor
    signed_sin_BLS: Tensor
    mask_BLL: Tensor | None


def sees(positions_BL: Tensor, window: int | None) -> Tensor | None:
    """Returns whether the query at i sees the key at j, [B, L, L]: of its own document, not later, within the window.

    Args:
        positions_BL: Each position's place in its document; a document's first place in the sequence need not be 0.

    Returns:
        None where that is every key up to the query.
    """
    length = positions_BL.shape[1]
    places_L = torch.arange(length, device=positions_BL.device)
    first_BL = (places_L - positions_BL).clamp(min=0)  # where the document begins in this sequence
    if window is not None and window < length:
        first_BL = torch.maximum(first_BL, places_L - (window - 1))
    elif not bool(first_BL.any()):
        return None
    keys_11L = places_L[None, None]
    return (keys_11L <= places_L[None, :, None]) & (keys_11L >= first_BL[:, :, None])


def additive(seen_BLL: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the mask that is added to the scores."""
    return torch.zeros(seen_BLL.shape, dtype=dtype, device=seen_BLL.device).masked_fill_(~seen_BLL, float("-inf"))


class Attention(nn.Module):
    """Joint projection, rotation, attention, output projection.

    Args:
        qkv_ND: The initial weights: query rows, then key rows, then value rows.
        output_DM: Those of the output projection.
    """

    def __init__(self, qkv_ND: Tensor, output_DM: Tensor, config: MixtralConfig) -> None:
        super().__init__()
        self.qkv = nn.Parameter(qkv_ND)
        self.output = nn.Parameter(output_DM)
        self._heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self._head_dim = config.head_dim

    def forward(self, rows_TD: Tensor, plan: AttentionPlan) -> Tensor:
        """Returns [T, D] for the normed rows of a layer."""
        num_sequences, length, head_dim = plan.cos_BLS.shape
        joint_TN = F.linear(rows_TD, self.qkv.to(rows_TD.dtype))
        joint = joint_TN.view(num_sequences, length, sum(self._heads), head_dim)
        q_BLHS, k_BLGS, v_BLGS = joint.split(self._heads, dim=2)
        q_BHLS, k_BGLS = _rotate(q_BLHS, plan).transpose(1, 2), _rotate(k_BLGS, plan).transpose(1, 2)
        mixed_BHLS = F.scaled_dot_product_attention(
            q_BHLS,
            _for_each_query_head(k_BGLS, self._heads[0]),
            _for_each_query_head(v_BLGS.transpose(1, 2), self._heads[0]),
            attn_mask=None if plan.mask_BLL is None else plan.mask_BLL.unsqueeze(1),
            is_causal=plan.mask_BLL is None,
        )
        mixed_TM = mixed_BHLS.transpose(1, 2).reshape(num_sequences * length, self._heads[0] * head_dim)
        return F.linear(mixed_TM, self.output.to(rows_TD.dtype))


def _rotate(x_BLHS: Tensor, plan: AttentionPlan) -> Tensor:
    """`model.rope.apply_rope_`, out of place: autograd would keep a copy anyway."""
    rolled_BLHS = x_BLHS.roll(x_BLHS.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BLHS * plan.cos_BLS.unsqueeze(2), rolled_BLHS, plan.signed_sin_BLS.unsqueeze(2))


def _for_each_query_head(x_BGLS: Tensor, num_heads: int) -> Tensor:
    groups = x_BGLS.shape[1]
    return x_BGLS if groups == num_heads else x_BGLS.repeat_interleave(num_heads // groups, dim=1)
