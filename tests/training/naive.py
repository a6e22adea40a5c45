"""Mixtral and its losses, written as plainly as possible, in one process: what training is compared with.

Every expert computes every row, attention is a softmax over a full matrix, and what a capacity drops is decided row by
row in Python. It shares no code with training/, router/ or model/.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MixtralConfig
from model.routing import BY_TOKEN
from training.model import Batch

Parameters = dict[str, Tensor]


def small_config(**changes: object) -> MixtralConfig:
    fields: dict[str, object] = {
        "hidden_size": 16,
        "ffn_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "num_experts": 4,
        "top_k": 2,
        "vocab_size": 40,
        "window": None,
        "max_context": 64,
        "rope_theta": 10000.0,
        "norm_eps": 1e-5,
        "tie_embeddings": False,
        "bos_token_id": 0,
        "eos_token_ids": (1,),
        "dtype": "float32",
        "routing": BY_TOKEN,
    }
    return MixtralConfig(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


def random_batch(config: MixtralConfig, seed: int, num_sequences: int, length: int) -> Batch:
    """Sequences of two documents each, with some labels left out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (num_sequences, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -1
    positions = torch.arange(length).repeat(num_sequences, 1)
    for row in range(num_sequences):
        cut = int(torch.randint(1, length, (1,), generator=generator))
        positions[row, cut:] -= cut
    tasks = torch.arange(num_sequences) % max(1, len(config.routing.tasks))
    return Batch(ids[:, :-1].contiguous(), labels, positions, tasks)


def parameters_of(config: MixtralConfig, seed: int, scale: float = 12.0) -> Parameters:
    """Random float64 parameters by training's names, large enough that routing and attention vary."""
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        start = f"layers.{layer}."
        sizes[start + "input_norm"] = sizes[start + "post_norm"] = (config.hidden_size,)
        sizes[start + "attention.qkv"] = (config.query_size + 2 * config.key_value_size, config.hidden_size)
        sizes[start + "attention.output"] = (config.hidden_size, config.query_size)
        tasks = len(config.routing.tasks)
        sizes[start + "moe.gate"] = (tasks, config.num_experts) if tasks else (config.num_experts, config.hidden_size)
        sizes[start + "moe.gate_up"] = (config.num_experts, 2 * config.ffn_size, config.hidden_size)
        sizes[start + "moe.down"] = (config.num_experts, config.hidden_size, config.ffn_size)
    sizes["final_norm"] = (config.hidden_size,)
    if not config.tie_embeddings:
        sizes["lm_head"] = (config.vocab_size, config.hidden_size)
    values = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.02 * scale
        for name, shape in sizes.items()
    }
    return {name: (value + 1 if name.endswith("norm") else value) for name, value in values.items()}


class GivenWeights:
    """Parameters by name, as `TrainModel` asks for its initial weights."""

    def __init__(self, parameters: Parameters, dtype: torch.dtype = torch.float64) -> None:
        self._parameters = {name: value.to(dtype) for name, value in parameters.items()}

    def embedding(self) -> Tensor:
        return self._parameters["embedding"].clone()

    def lm_head(self) -> Tensor:
        return self._parameters["lm_head"].clone()

    def vector(self, name: str) -> Tensor:
        return self._parameters[name].clone()

    def qkv(self, layer: int) -> Tensor:
        return self._parameters[f"layers.{layer}.attention.qkv"].clone()

    def output(self, layer: int) -> Tensor:
        return self._parameters[f"layers.{layer}.attention.output"].clone()

    def gate(self, layer: int) -> Tensor:
        return self._parameters[f"layers.{layer}.moe.gate"].clone()

    def expert(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        start = f"layers.{layer}.moe."
        return self._parameters[start + "gate_up"][expert].clone(), self._parameters[start + "down"][expert].clone()


@dataclass
class NaiveLosses:
    """The whole loss, and its parts before their coefficients."""

    total: Tensor
    nats: Tensor
    balance: Tensor
    router_z: Tensor
    dropped: list[int]
    counts: list[list[int]]
    rows: list[Tensor]


def losses_of(
    parameters: Parameters,
    config: MixtralConfig,
    batches: Sequence[Batch],
    *,
    balance: float,
    router_z: float,
    scope: str = "batch",
    capacity: int | None = None,
) -> NaiveLosses:
    """The loss of what several ranks compute; a capacity holds for the rows of each rank by itself."""
    passes = [_forward(parameters, config, batch, capacity) for batch in batches]
    num_labels = sum(int((batch.labels_BL >= 0).sum()) for batch in batches)
    nats = torch.stack([one.nats for one in passes]).sum() / num_labels
    layers = range(config.num_layers)
    groups = [passes] if scope == "batch" else [[one] for one in passes]
    balances = [
        _balance(torch.cat([one.logits[layer] for one in group]), config) for group in groups for layer in layers
    ]
    all_logits = [torch.cat([one.logits[layer] for one in passes]) for layer in layers]
    z = torch.stack([logits.logsumexp(-1).square().mean() for logits in all_logits]).mean()
    mean_balance = torch.stack(balances).mean()
    return NaiveLosses(
        total=nats + balance * mean_balance + router_z * z,
        nats=nats,
        balance=mean_balance,
        router_z=z,
        dropped=[sum(one.dropped[layer] for one in passes) for layer in layers],
        counts=[
            logits.topk(config.top_k).indices.flatten().bincount(minlength=config.num_experts).tolist()
            for logits in all_logits
        ],
        rows=[one.rows for one in passes],
    )


@dataclass
class _Pass:
    nats: Tensor
    logits: list[Tensor]
    dropped: list[int]
    rows: Tensor


def _forward(parameters: Parameters, config: MixtralConfig, batch: Batch, capacity: int | None) -> _Pass:
    x = parameters["embedding"][batch.ids_BL]
    all_logits: list[Tensor] = []
    dropped: list[int] = []
    for layer in range(config.num_layers):
        start = f"layers.{layer}."
        x = x + _attention(parameters, start, config, _norm(x, parameters[start + "input_norm"], config), batch)
        rows = _norm(x, parameters[start + "post_norm"], config).flatten(0, 1)
        logits = _logits(parameters[start + "moe.gate"], rows, config, batch)
        out, lost = _experts(parameters, start, config, rows, logits, capacity)
        x = x + out.view_as(x)
        all_logits.append(logits)
        dropped.append(lost)
    x = _norm(x, parameters["final_norm"], config)
    head = parameters["embedding"] if config.tie_embeddings else parameters["lm_head"]
    log_probs = (x @ head.T).log_softmax(-1)
    kept = batch.labels_BL >= 0
    nats = -log_probs[kept].gather(-1, batch.labels_BL[kept].unsqueeze(-1)).sum()
    return _Pass(nats, all_logits, dropped, x.flatten(0, 1))


def _logits(gate: Tensor, rows: Tensor, config: MixtralConfig, batch: Batch) -> Tensor:
    length = batch.ids_BL.shape[1]
    if config.routing.level == "task":
        return torch.stack([gate[batch.tasks_B[row // length]] for row in range(rows.shape[0])])
    if config.routing.level == "token":
        return rows @ gate.T
    seen: list[Tensor] = []
    for row in range(rows.shape[0]):
        position = int(batch.positions_BL.flatten()[row])
        counted = range(row - position, row - position + min(position + 1, config.routing.positions))
        seen.append(torch.stack([rows[other] for other in counted]).mean(0))
    return torch.stack(seen) @ gate.T


def _norm(x: Tensor, weight: Tensor, config: MixtralConfig) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight


def _attention(parameters: Parameters, start: str, config: MixtralConfig, x: Tensor, batch: Batch) -> Tensor:
    num_sequences, length, _ = x.shape
    query, key, value = (x @ parameters[start + "attention.qkv"].T).split(
        [config.query_size, config.key_value_size, config.key_value_size], dim=-1
    )
    query = _rotated(query.view(num_sequences, length, config.num_heads, -1), batch.positions_BL, config)
    key = _rotated(key.view(num_sequences, length, config.num_kv_heads, -1), batch.positions_BL, config)
    value = value.view(num_sequences, length, config.num_kv_heads, -1)
    mixed = torch.zeros_like(query)
    for head in range(config.num_heads):
        group = head * config.num_kv_heads // config.num_heads
        scores = query[:, :, head] @ key[:, :, group].transpose(1, 2) / math.sqrt(config.head_dim)
        for sequence in range(num_sequences):
            positions = batch.positions_BL[sequence].tolist()
            for i in range(length):
                for j in range(length):
                    same = j <= i and i - j <= positions[i]
                    if not same or (config.window is not None and i - j >= config.window):
                        scores[sequence, i, j] = -math.inf
        mixed[:, :, head] = scores.softmax(-1) @ value[:, :, group]
    return mixed.flatten(2) @ parameters[start + "attention.output"].T


def _rotated(x: Tensor, positions_BL: Tensor, config: MixtralConfig) -> Tensor:
    half = config.head_dim // 2
    frequencies = 1.0 / config.rope_theta ** (torch.arange(half, dtype=torch.float32) * 2 / config.head_dim)
    angles = positions_BL.float().unsqueeze(-1) * frequencies
    cos, sin = angles.cos().to(x).unsqueeze(2), angles.sin().to(x).unsqueeze(2)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _experts(
    parameters: Parameters, start: str, config: MixtralConfig, rows: Tensor, logits: Tensor, capacity: int | None
) -> tuple[Tensor, int]:
    chosen, experts = logits.topk(config.top_k)
    weights = chosen.softmax(-1)
    taken = [0] * config.num_experts
    kept = torch.ones_like(experts, dtype=torch.bool)
    for choice in range(config.top_k if capacity is not None else 0):
        for row in range(rows.shape[0]):
            expert = int(experts[row, choice])
            taken[expert] += 1
            kept[row, choice] = taken[expert] <= (capacity or 0)
    out = torch.zeros_like(rows)
    for expert in range(config.num_experts):
        gate, up = parameters[start + "moe.gate_up"][expert].chunk(2)
        answers = (F.silu(rows @ gate.T) * (rows @ up.T)) @ parameters[start + "moe.down"][expert].T
        share = (weights * (kept & (experts == expert))).sum(-1, keepdim=True)
        out = out + share * answers
    return out, int((~kept).sum())


def _balance(logits: Tensor, config: MixtralConfig) -> Tensor:
    counts = logits.topk(config.top_k).indices.flatten().bincount(minlength=config.num_experts)
    return config.num_experts * ((counts / counts.sum()).to(logits) * logits.softmax(-1).mean(0)).sum()
