"""A tiny engine with random weights and no checkpoint; a function of the rows alone stands in for the experts."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from attention.cache import CacheShape, RollingCache
from attention.dense import DenseModel
from attention.engine import Engine
from attention.levels import Experts
from attention.scheduler import SchedulerLimits
from checkpoint.weights import AttentionLayerWeights, AttentionWeights
from model.config import MixtralConfig
from protos.generation_pb2 import Sampling, SequenceOutput, Submit

EOS = 1
VOCABULARY = 50
MAX_CONTEXT = 64
CPU = torch.device("cpu")
CONFIG = MixtralConfig(
    hidden_size=16,
    ffn_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    num_experts=4,
    top_k=2,
    vocab_size=VOCABULARY,
    window=None,
    max_context=MAX_CONTEXT,
    rope_theta=1e4,
    norm_eps=1e-5,
    tie_embeddings=False,
    bos_token_id=0,
    eos_token_ids=(EOS,),
    dtype="float32",
)


def random_weights(seed: int) -> AttentionWeights:
    """Weights of CONFIG that give every token another next one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 1.6 / shape[-1] ** 0.5

    ones = torch.ones(16)
    layers = [AttentionLayerWeights(ones, normal(32, 16), normal(16, 16), ones) for _ in range(CONFIG.num_layers)]
    return AttentionWeights(normal(VOCABULARY, 16), layers, ones, normal(VOCABULARY, 16))


def mild_experts(layer: int, rows_TD: Tensor) -> Tensor:
    """Mixes every row with its own reverse, differently in each layer."""
    return torch.tanh(rows_TD.flip(1)) * (layer + 1)


def make_engine(
    seed: int,
    *,
    experts: Experts = mild_experts,
    weights: AttentionWeights | None = None,
    window: int = MAX_CONTEXT,
    block_size: int = 4,
    num_blocks: int = 64,
    limits: SchedulerLimits | None = None,
) -> Engine:
    """An engine of CONFIG; two of them with the same seed compute the same."""
    limits = limits or SchedulerLimits(prefill_chunk=8, max_batch_tokens=32, max_sequences=4, max_queued=3)
    shape = CacheShape(CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim, window, block_size)
    cache = RollingCache(shape, num_blocks, limits.max_sequences, torch.float32, CPU)
    model = DenseModel(CONFIG, weights or random_weights(seed), CPU)
    return Engine(model, cache, limits, MAX_CONTEXT, lambda plan: experts)


def bad_words(*words: list[int]) -> dict[str, Any]:
    """The fields of a Sampling that forbid these words."""
    return {"bad_word_ids": [*chain(*words)], "num_ids_per_bad_word": [len(word) for word in words]}


def submit(engine: Engine, key: int, prompt: list[int], **sampling: object) -> None:
    """Queues a sequence."""
    engine.submit(key, Submit(prompt_ids=prompt, sampling=Sampling(**sampling)))


def step(engine: Engine) -> dict[int, SequenceOutput]:
    """One step; what each sequence got, by its key."""
    result = engine.step()
    plain = {
        sequence.key: SequenceOutput(token_ids=[token_id])
        for sequence, token_id in zip(result.sequences, result.token_ids, strict=True)
    }
    messages = {sequence.key: output for sequence, output in result.messages}
    assert len(plain) + len(messages) == len(result.sequences) + len(result.messages), "a sequence got two outputs"
    assert not plain.keys() & messages.keys(), "a sequence got two outputs"
    return plain | messages


def finish(engine: Engine, max_steps: int = 500) -> dict[int, SequenceOutput]:
    """Steps until nothing is left; each sequence's outputs merged into one."""
    outputs: dict[int, SequenceOutput] = {}
    for _ in range(max_steps):
        for key, output in step(engine).items():
            outputs.setdefault(key, SequenceOutput()).MergeFrom(output)
        engine.check_integrity()
        if not engine.has_work:
            return outputs
    raise AssertionError(f"sequences are left after {max_steps} steps")


def outputs_of(seed: int, prompt: list[int], **sampling: object) -> list[int]:
    """What a sequence gets alone on an engine."""
    engine = make_engine(seed)
    submit(engine, 0, prompt, **sampling)
    return list(finish(engine)[0].token_ids)
