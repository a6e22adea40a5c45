"""A node runs once before its first request, and is as free afterwards as before."""

from dataclasses import replace

import pytest

from attention.dense import DenseModel
from attention.sizing import NodeSettings, make_cache
from attention.warming import rehearse, warm_up
from model.routing import Routing
from tests.attention.small_engine import CONFIG, CPU, random_weights


@pytest.mark.parametrize("routing", [Routing(), Routing("sentence", 3), Routing("task", tasks=("python", "prose"))])
@pytest.mark.parametrize(("max_context", "max_sequences", "window"), [(64, 8, None), (64, 1, 4), (2, 8, None)])
def test_the_cache_is_free_again(
    max_context: int, max_sequences: int, window: int | None, routing: Routing, seed: int
) -> None:
    settings = NodeSettings(window, max_context, None, None, 64, max_sequences, 0)
    weights = random_weights(seed)
    model = DenseModel(replace(CONFIG, routing=routing), weights, CPU)
    cache = make_cache(settings, CONFIG, weights.embedding_VD.dtype, CPU)
    warm_up(model, cache, settings)
    assert cache.used_tokens == 0
    cache.check_integrity()


@pytest.mark.parametrize(
    ("chunk", "max_context", "max_sequences", "rows"),
    [
        (64, 200, 8, 64),  # one prompt fills a step
        (10, 200, 8, 64),  # seven prompts do, the last one shorter
        (10, 200, 3, 30),  # there are never more sequences than three
        (64, 4, 8, 8 * 3),  # nor longer prompts
        (1, 2, 64, 64),
    ],
)
@pytest.mark.parametrize("window", [None, 4])
def test_a_rehearsal_computes_the_largest_step(
    window: int | None, chunk: int, max_context: int, max_sequences: int, rows: int, seed: int
) -> None:
    settings = NodeSettings(window, max_context, None, chunk, 64, max_sequences, 0)
    weights = random_weights(seed)
    assert rehearse(DenseModel(CONFIG, weights, CPU), settings, weights.embedding_VD.dtype) == rows
