"""Everything of a Mixtral but its experts: embedding, attention layers, norms, LM head.

T rows, D model dim, H query heads, G key/value heads, S head dim, V vocabulary, A = H + 2G,
N = A * S.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from attention.attend import attend
from attention.batch import Batch
from attention.cache import RollingCache
from checkpoint.weights import AttentionLayerWeights, AttentionWeights
from model.config import MixtralConfig
from model.linear import make_linear
from model.norm import rms_norm
from model.rope import RotaryTable, apply_rope_

# Yields (layer, rows for its experts), is sent their combined output, and returns the last hidden rows.
Forward = Generator[tuple[int, Tensor], Tensor, Tensor]


class _Layer:
    def __init__(self, weights: AttentionLayerWeights, device: torch.device) -> None:
        self.input_norm_D = weights.input_norm_D.to(device)
        self.qkv = make_linear(weights.qkv_ND.to(device), copy_small=True)
        self.output = make_linear(weights.output_DM.to(device), copy_small=True)
        self.post_norm_D = weights.post_norm_D.to(device)


class DenseModel:
    """The dense part of the model, on one device, in one dtype."""

    def __init__(self, config: MixtralConfig, weights: AttentionWeights, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.dtype = weights.embedding_VD.dtype
        self._embedding_VD = weights.embedding_VD.to(device)
        self._layers = [_Layer(layer, device) for layer in weights.layers]
        self._final_norm_D = weights.final_norm_D.to(device)
        self._lm_head = make_linear(weights.lm_head_VD.to(device))
        self._rotary = RotaryTable(
            config.head_dim, config.rope_theta, config.max_context,
            scaling=config.rope_scaling, dtype=self.dtype, device=device,
        )  # fmt: skip

    def forward(self, batch: Batch, cache: RollingCache) -> Forward:
        """Runs a step as a generator, so that its caller decides how the experts are reached and what overlaps."""
        rotary = self._rotary.rows(batch.positions_T, stop=batch.num_positions)
        rows_TD = self._embedding_VD.index_select(0, batch.ids_T)
        for index, layer in enumerate(self._layers):
            rows_TD = rows_TD + self._attention(index, layer, batch, cache, rotary, rows_TD)
            experts_TD = yield index, rms_norm(rows_TD, layer.post_norm_D, self.config.norm_eps)
            rows_TD = rows_TD + experts_TD
        return rows_TD

    def logits(self, rows_TD: Tensor) -> Tensor:
        """Returns the logits [T, V] of last hidden rows, in the model's dtype."""
        return self._lm_head(rms_norm(rows_TD, self._final_norm_D, self.config.norm_eps))

    def _attention(
        self,
        index: int,
        layer: _Layer,
        batch: Batch,
        cache: RollingCache,
        rotary: tuple[Tensor, Tensor],
        rows_TD: Tensor,
    ) -> Tensor:
        config = self.config
        qkv_TN = layer.qkv(rms_norm(rows_TD, layer.input_norm_D, config.norm_eps))
        heads_TAS = qkv_TN.view(-1, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        apply_rope_(heads_TAS[:, : -config.num_kv_heads], *rotary)
        query_THS, keys_values_TGS = heads_TAS[:, : config.num_heads], heads_TAS[:, config.num_heads :]
        return layer.output(attend(index, batch, cache, query_THS, keys_values_TGS))
