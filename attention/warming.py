"""Runs a node's engine before its first request: kernels are built and weights paged in while nobody waits."""

from attention.cache import RollingCache
from attention.dense import DenseModel
from attention.engine import Engine
from attention.sizing import NodeSettings
from protos.generation_pb2 import Sampling, Submit

NUM_SEQUENCES = 4  # decoded together at first, then fewer and fewer
NUM_TOKENS = 8


def warm_up(model: DenseModel, cache: RollingCache, settings: NodeSettings) -> None:
    """Decodes a few short sequences of any tokens, with no experts in between; leaves the cache as free as it was."""
    engine = Engine(model, cache, settings.limits(), settings.max_context, lambda plan: lambda layer, rows_TD: rows_TD)
    num_positions = max(1, settings.max_context - 1)
    task = next(iter(model.config.routing.tasks), "")
    for number in range(min(NUM_SEQUENCES, settings.max_sequences)):
        prompt = [0] * min(1 + number, num_positions)
        num_tokens = min(NUM_TOKENS - number, settings.max_context - len(prompt))
        sampling = Sampling(max_tokens=max(1, num_tokens), ignore_eos=True)
        engine.submit(number, Submit(prompt_ids=prompt, sampling=sampling, task=task))
    while engine.has_work:
        engine.step()
