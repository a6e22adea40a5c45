"""Attention of one layer over the rolling cache. Pure maths; grouped-query attention as in Mixtral.

T rows, H query heads, G key/value heads, R = H / G, S head dim, B sequences of a decode group, L keys, Q queries of a
chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.batch import Batch, DecodeGroup, PrefillSpan
from attention.cache import RollingCache

# Up to so many sequences (1 at least) one fused call takes less time than two products: docs/decisions/004.
FEW_SEQUENCES = 4


def attend(layer: int, batch: Batch, cache: RollingCache, query_THS: Tensor, keys_values_TGS: Tensor) -> Tensor:
    """Attends every row of a step, and stores its keys and values.

    Chunks attend before anything is written (writing could overwrite keys that their first queries need);
    decoding rows afterwards (their own key must be in the ring).

    Args:
        query_THS: Rotated queries.
        keys_values_TGS: [T, 2G, S]: rotated key heads, then value heads.

    Returns:
        [T, H * S].
    """
    parts = [_attend_chunk(layer, span, cache, query_THS, keys_values_TGS) for span in batch.prefill]
    written = keys_values_TGS if batch.kept is None else keys_values_TGS.index_select(0, batch.kept)
    cache.write(layer, batch.places_N, written)
    decoded = [_attend_ring(layer, group, cache, query_THS) for group in batch.decode]
    parts = decoded + parts
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_ring(layer: int, group: DecodeGroup, cache: RollingCache, query_THS: Tensor) -> Tensor:
    """One query per sequence over its whole ring. The heads of a group stand side by side, as if they were R queries
    of one head: neither keys nor values need to be repeated."""
    num_sequences = group.stop - group.start
    heads = cache.shape.num_kv_heads
    num_heads, head_dim = query_THS.shape[1:]
    keys, values = cache.gather(layer, group.index, num_sequences)
    query = query_THS[group.start : group.stop].reshape(num_sequences, heads, num_heads // heads, head_dim)
    if num_sequences <= FEW_SEQUENCES:
        keys = keys.view(num_sequences, heads, -1, head_dim)
        attended = _attend_fused(query, keys, values.view(keys.shape), group)
    else:
        attended = _attend_batched(query.flatten(0, 1), keys, values, group)
    return attended.reshape(num_sequences, num_heads * head_dim)


def _attend_fused(query_BGRS: Tensor, keys_BGLS: Tensor, values_BGLS: Tensor, group: DecodeGroup) -> Tensor:
    if group.bias_B1L is None:
        keys_BGLS, values_BGLS = keys_BGLS[:, :, : group.num_slots], values_BGLS[:, :, : group.num_slots]
        return F.scaled_dot_product_attention(query_BGRS, keys_BGLS, values_BGLS)
    return F.scaled_dot_product_attention(query_BGRS, keys_BGLS, values_BGLS, attn_mask=group.bias_B1L.unsqueeze(1))


def _attend_batched(query_NRS: Tensor, keys_NLS: Tensor, values_NLS: Tensor, group: DecodeGroup) -> Tensor:
    """Two batched products (N = B * G), which have more to set up, but keep the vector units busier. The end of the
    last block is hidden rather than cut off: oneDNN builds a kernel for each new L."""
    assert group.bias_B1L is not None, "several sequences have one"
    scores_NRL = torch.bmm(query_NRS * query_NRS.shape[-1] ** -0.5, keys_NLS.transpose(1, 2))
    scores_NRL.view(group.stop - group.start, -1, scores_NRL.shape[-1]).add_(group.bias_B1L)
    weights_NRL = scores_NRL.softmax(-1, dtype=_softmax_dtype(scores_NRL.dtype)).to(scores_NRL.dtype)
    return torch.bmm(weights_NRL, values_NLS)


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend_chunk(
    layer: int, span: PrefillSpan, cache: RollingCache, query_THS: Tensor, keys_values_TGS: Tensor
) -> Tensor:
    """A chunk's queries over what is cached and over the chunk itself. Returns [Q, H * S]."""
    groups = cache.shape.num_kv_heads
    query_QHS = query_THS[span.start : span.stop]
    chunk_2GQS = keys_values_TGS[span.start : span.stop].transpose(0, 1)
    keys_GLS, values_GLS = chunk_2GQS[:groups], chunk_2GQS[groups:]
    if span.index is not None:
        cached_keys, cached_values = cache.gather(layer, span.index, 1)
        keys_GLS = torch.cat((cached_keys, keys_GLS), dim=1)
        values_GLS = torch.cat((cached_values, values_GLS), dim=1)
    num_queries, num_heads, head_dim = query_QHS.shape
    repeats = num_heads // groups
    query_HQS = query_QHS.transpose(0, 1)
    output = F.scaled_dot_product_attention(
        query_HQS.unsqueeze(0),
        keys_GLS.repeat_interleave(repeats, 0).unsqueeze(0),
        values_GLS.repeat_interleave(repeats, 0).unsqueeze(0),
        attn_mask=span.visible_QL,
        is_causal=span.visible_QL is None,
    )
    return output.squeeze(0).transpose(0, 1).reshape(num_queries, num_heads * head_dim)
