"""Runs a node's engine before its first request: kernels are built and weights paged in while nobody waits."""

import torch

from attention.cache import RollingCache
from attention.dense import DenseModel
from attention.engine import Engine
from attention.levels import Experts
from attention.scheduler import StepPlan
from attention.sizing import NodeSettings, cache_shape
from protos.generation_pb2 import Sampling, Submit

NUM_SEQUENCES = 4  # decoded together at first, then fewer and fewer
NUM_TOKENS = 8


def warm_up(model: DenseModel, cache: RollingCache, settings: NodeSettings) -> None:
    """Decodes a few short sequences of any tokens, with no experts in between; leaves the cache as free as it was."""
    num_sequences = min(NUM_SEQUENCES, settings.max_sequences)
    _generate(model, cache, settings, [(1 + number, NUM_TOKENS - number) for number in range(num_sequences)])


def rehearse(model: DenseModel, settings: NodeSettings, dtype: torch.dtype) -> int:
    """Computes a step of as many rows as one may have, so that its peak of memory is known before a cache is sized.

    Its own cache holds just the positions of that step, and is given back.

    Returns:
        The rows of that step.
    """
    limits, shape = settings.limits(), cache_shape(settings, model.config)
    length = min(limits.prefill_chunk, max(1, settings.max_context - 1))
    whole, rest = divmod(limits.max_batch_tokens, length)
    lengths = ([length] * whole + [rest] * bool(rest))[: settings.max_sequences]
    num_blocks = sum(shape.num_blocks_for(length + 1) for length in lengths)
    cache = RollingCache(shape, num_blocks, settings.max_sequences, dtype, model.device)
    return _generate(model, cache, settings, [(length, 1) for length in lengths])


def _generate(model: DenseModel, cache: RollingCache, settings: NodeSettings, wishes: list[tuple[int, int]]) -> int:
    """Generates from prompts of any tokens, with no experts in between.

    Args:
        wishes: For each sequence, how long its prompt is and how many tokens it generates, as far as the context goes.

    Returns:
        The rows of the largest step.
    """
    rows = [0]

    def no_experts(plan: StepPlan) -> Experts:
        rows.append(len(plan.decode) + sum(chunk.count for chunk in plan.prefill))
        return lambda layer, rows_TD: rows_TD

    engine = Engine(model, cache, settings.limits(), settings.max_context, no_experts)
    num_positions = max(1, settings.max_context - 1)
    task = next(iter(model.config.routing.tasks), "")
    for number, (length, num_tokens) in enumerate(wishes):
        prompt = [0] * min(length, num_positions)
        sampling = Sampling(max_tokens=max(1, min(num_tokens, settings.max_context - len(prompt))), ignore_eos=True)
        engine.submit(number, Submit(prompt_ids=prompt, sampling=sampling, task=task))
    while engine.has_work:
        engine.step()
    return max(rows)
