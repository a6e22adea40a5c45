"""What `auto` comes to: chunk, blocks and memory of a node."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention.cache import DEFAULT_BLOCK_SIZE
from attention.sizing import (
    FULL_ATTENTION_CHUNK,
    GPU_MEMORY_FRACTION,
    GpuMemory,
    NodeSettings,
    batch_tokens,
    gpu_cache_bytes,
    make_cache,
)
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


GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "share", "expected"),
    [
        # Alone: nine tenths, less weights and the largest step.
        (GpuMemory(100 * GIB, free=90 * GIB, own=10 * GIB, own_peak=14 * GIB), 1.0, 76 * GIB),
        # A tenth beside an expert that has not loaded yet: what is free now is no matter.
        (GpuMemory(100 * GIB, free=95 * GIB, own=3 * GIB, own_peak=4 * GIB), 0.1, 5 * GIB),
        # Another process has taken more than its share.
        (GpuMemory(100 * GIB, free=10 * GIB, own=3 * GIB, own_peak=4 * GIB), 0.5, 9 * GIB),
        (GpuMemory(100 * GIB, free=90 * GIB, own=10 * GIB, own_peak=14 * GIB), 0.1, 0),
    ],
)
def test_a_gpu_is_shared_as_the_file_says(memory: GpuMemory, share: float, expected: int) -> None:
    assert gpu_cache_bytes(memory, share) == pytest.approx(expected, abs=1)


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=8).filter(lambda shares: sum(shares) <= 1),
    peak=st.integers(0, 1 << 34),
)
def test_those_that_share_a_gpu_never_take_more_than_there_is(shares: list[float], peak: int) -> None:
    """Whatever the order in which they load: each asks when those before it have their caches, or not yet."""
    total = 80 * GIB
    for loaded in (True, False):
        taken = 0
        for share in shares:
            own = min(peak, int(total * share * GPU_MEMORY_FRACTION))
            seen = taken if loaded else 0
            cache = gpu_cache_bytes(GpuMemory(total, max(0, total - seen - own), own, own), share)
            taken += own + cache
        assert taken <= total
