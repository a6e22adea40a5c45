"""How large a node's cache is, and its other limits, where the service file says `auto`."""

from dataclasses import dataclass
from pathlib import Path

import torch

from attention.cache import DEFAULT_BLOCK_SIZE, CacheShape, RollingCache
from attention.scheduler import SchedulerLimits
from model.config import MixtralConfig

# A prompt chunk where there is no window: large enough for full-speed matmuls, small enough not to hold up decoding.
FULL_ATTENTION_CHUNK = 512
# Rows of one step: matmuls are at full speed from about 64 rows an expert, which 512 rows give to 8 experts; on a CPU
# a larger step only holds up the sequences that decode (2048 rows of a 742 M model take 3 s on two cores).
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 2048
CPU_MEMORY_FRACTION = 0.2
GPU_MEMORY_FRACTION = 0.9


@dataclass(frozen=True)
class NodeSettings:
    """The `attention` section and what it depends on, as given; None means auto.

    Args:
        window: Attention window in positions; None: full attention.
        max_context: Positions of a sequence, prompt and output together.
        cache_tokens: Positions that the cache holds, over all sequences.
    """

    window: int | None
    max_context: int
    cache_tokens: int | None
    prefill_chunk: int | None
    max_batch_tokens: int
    max_sequences: int
    max_queued: int

    def limits(self) -> SchedulerLimits:
        """Returns the scheduler's limits; the prefill chunk is the window unless it was given."""
        chunk = self.prefill_chunk or self.window or FULL_ATTENTION_CHUNK
        return SchedulerLimits(
            min(chunk, self.max_batch_tokens), self.max_batch_tokens, self.max_sequences, self.max_queued
        )


def batch_tokens(given: int | None, device: str, max_sequences: int) -> int:
    """Returns the most rows of one step; None (auto) is decided by the device, and has room for every sequence."""
    auto = GPU_BATCH_TOKENS if device == "cuda" else CPU_BATCH_TOKENS
    return max(auto, max_sequences) if given is None else given


def make_cache(settings: NodeSettings, config: MixtralConfig, dtype: torch.dtype, device: torch.device) -> RollingCache:
    """Returns a node's cache.

    Raises:
        ValueError: `cache_tokens` (given, or what the memory allows) cannot hold one full sequence.
    """
    window = min(settings.window or settings.max_context, settings.max_context)
    block_size = min(DEFAULT_BLOCK_SIZE, window)
    shape = CacheShape(config.num_layers, config.num_kv_heads, config.head_dim, window, block_size)
    wanted = settings.max_sequences * shape.blocks_per_sequence
    if settings.cache_tokens is not None:
        num_blocks = min(wanted, settings.cache_tokens // block_size)
    else:
        num_blocks = min(wanted, _memory_budget_bytes(device) // (shape.bytes_per_position(dtype) * block_size))
    if num_blocks < shape.blocks_per_sequence:
        raise ValueError(
            f"the cache would hold {num_blocks * block_size} positions, but one sequence needs "
            f"{shape.blocks_per_sequence * block_size}; raise attention.cache_tokens, or lower model.max_context or "
            "model.window"
        )
    return RollingCache(shape, num_blocks, settings.max_sequences, dtype, device)


def _memory_budget_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes * GPU_MEMORY_FRACTION)
    return int(_available_host_bytes() * CPU_MEMORY_FRACTION)


def _available_host_bytes() -> int:
    """Memory that is left, by the host's count and by the container's limit (cgroup v2), whichever is less."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return _mem_available_bytes()
    return _mem_available_bytes() if limit == "max" else min(_mem_available_bytes(), max(0, int(limit) - used))


def _mem_available_bytes() -> int:
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable; set attention.cache_tokens")
