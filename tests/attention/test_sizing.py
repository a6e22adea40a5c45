"""What `auto` comes to: chunk, blocks and memory of a node."""

from dataclasses import replace

import pytest
import torch

from attention.cache import DEFAULT_BLOCK_SIZE
from attention.sizing import FULL_ATTENTION_CHUNK, NodeSettings, batch_tokens, make_cache
from tests.attention.small_engine import CONFIG

CPU = torch.device("cpu")
SETTINGS = NodeSettings(
    window=None,
    max_context=256,
    cache_tokens=None,
    prefill_chunk=None,
    max_batch_tokens=2048,
    max_sequences=3,
    max_queued=7,
)


@pytest.mark.parametrize(
    ("window", "prefill_chunk", "max_batch_tokens", "chunk"),
    [
        (None, None, 2048, FULL_ATTENTION_CHUNK),
        (100, None, 2048, 100),
        (100, 30, 2048, 30),
        (None, 30, 2048, 30),
        (4096, None, 2048, 2048),  # no chunk is larger than a step
    ],
)
def test_chunk(window: int | None, prefill_chunk: int | None, max_batch_tokens: int, chunk: int) -> None:
    settings = replace(SETTINGS, window=window, prefill_chunk=prefill_chunk, max_batch_tokens=max_batch_tokens)
    limits = settings.limits()
    assert limits.prefill_chunk == chunk
    assert (limits.max_batch_tokens, limits.max_sequences, limits.max_queued) == (max_batch_tokens, 3, 7)


@pytest.mark.parametrize(
    ("window", "ring", "block_size"),
    [(None, 256, DEFAULT_BLOCK_SIZE), (100, 100, DEFAULT_BLOCK_SIZE), (16, 16, 16), (1000, 256, DEFAULT_BLOCK_SIZE)],
)
def test_every_sequence_gets_its_ring_where_memory_allows(window: int | None, ring: int, block_size: int) -> None:
    cache = make_cache(replace(SETTINGS, window=window), CONFIG, torch.float32, CPU)
    assert (cache.shape.window, cache.shape.block_size) == (ring, block_size)
    assert cache.num_blocks == 3 * -(-ring // block_size)


def test_cache_tokens_bound_the_memory() -> None:
    cache = make_cache(replace(SETTINGS, cache_tokens=400), CONFIG, torch.float32, CPU)
    assert cache.total_tokens == 384  # whole blocks of 64
    more_than_needed = make_cache(replace(SETTINGS, cache_tokens=10**9), CONFIG, torch.float32, CPU)
    assert more_than_needed.total_tokens == 3 * 256


def test_available_memory_bounds_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_of_a_block = 2 * 2 * 2 * 4 * 4 * DEFAULT_BLOCK_SIZE  # keys and values, layers, heads, head dim, float32
    monkeypatch.setattr("attention.sizing._available_host_bytes", lambda: 25 * bytes_of_a_block)
    assert make_cache(SETTINGS, CONFIG, torch.float32, CPU).num_blocks == 5  # a fifth


def test_too_small_for_one_sequence() -> None:
    with pytest.raises(ValueError, match=r"would hold 192 positions.*needs 256; raise attention\.cache_tokens"):
        make_cache(replace(SETTINGS, cache_tokens=255), CONFIG, torch.float32, CPU)


@pytest.mark.parametrize(
    ("given", "device", "max_sequences", "expected"),
    [(None, "cpu", 64, 512), (None, "cuda", 64, 2048), (None, "cpu", 1000, 1000), (100, "cuda", 64, 100)],
)
def test_batch_tokens(given: int | None, device: str, max_sequences: int, expected: int) -> None:
    assert batch_tokens(given, device, max_sequences) == expected
