"""The model in float64 and in this process: how close its gates' choices between two experts are.

T rows, E experts, K chosen experts per row.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attention.dense import DenseModel
from attention.engine import Engine
from attention.sizing import CPU_BATCH_TOKENS, NodeSettings, make_cache
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights, read_gates
from experts.shard import load_shard
from model.config import read_config
from protos.generation_pb2 import Sampling, Submit
from router.gating import top_k_gate
from router.plan import combine, dispatch

DTYPE = torch.float64
CPU = torch.device("cpu")


class ExactModel:
    """A checkpoint, held in float64.

    Args:
        max_context: Positions of the longest sequence that will be asked about.

    Raises:
        ModelError: It cannot be read.
        ValueError: It does not route by token.
    """

    def __init__(self, directory: Path, max_context: int) -> None:
        config, reader = read_config(directory), CheckpointReader(directory)
        if config.routing.level != "token":
            raise ValueError(
                f"{directory} routes by {config.routing.level}; gaps are known of token-level models alone"
            )
        self._top_k, self._num_experts = config.top_k, config.num_experts
        self._gates = read_gates(reader, config, DTYPE)
        self._shard = load_shard(directory, config, range(config.num_experts), 0, 1, DTYPE, CPU)
        node = NodeSettings(config.window, max_context, None, None, CPU_BATCH_TOKENS, max_sequences=1, max_queued=1)
        dense = DenseModel(config, read_attention_weights(reader, config, DTYPE), CPU)
        cache = make_cache(node, config, DTYPE, CPU)
        self._engine = Engine(dense, cache, node.limits(), max_context, lambda plan: self._experts)
        self._smallest = math.inf

    def gate_margin(self, ids: Sequence[int]) -> float:
        """The smallest gap between the last chosen and the first unchosen gate logit, in any layer, at any of `ids`."""
        self._smallest = math.inf
        self._engine.submit(0, Submit(prompt_ids=ids, sampling=Sampling(max_tokens=0)))
        while self._engine.has_work:
            self._engine.step()
        return self._smallest

    def _experts(self, layer: int, rows_TD: Tensor) -> Tensor:
        gate_ED = self._gates[layer]
        self._smallest = min(self._smallest, smallest_gap(rows_TD.mm(gate_ED.t()), self._top_k))
        sent_ND, plan = dispatch(rows_TD, *top_k_gate(rows_TD, gate_ED, self._top_k), self._num_experts)
        answers: list[Tensor] = []
        for expert, rows_ND in enumerate(sent_ND.split(plan.counts)):
            ffn = self._shard.ffn(layer, expert)
            assert ffn is not None, "the shard holds every expert"
            answers.append(ffn(rows_ND))
        return combine(plan, torch.cat(answers))


def smallest_gap(logits_TE: Tensor, top_k: int) -> float:
    """How far the K-th best logit is above the next, in the row where that is least; infinite where all are chosen."""
    if top_k == logits_TE.shape[1]:
        return math.inf
    best_TK = logits_TE.topk(top_k + 1, dim=-1).values
    return (best_TK[:, -2] - best_TK[:, -1]).min().item()
