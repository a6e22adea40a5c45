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


@dataclass(frozen=True)
class GpuMemory:
    """The memory of a GPU as one of the processes on it sees it, in bytes.

    Args:
        total: All of it.
        free: What no process has taken.
        own: What this process holds.
        own_peak: The most that this process has held: its weights, and what its largest step took beside them.
    """

    total: int
    free: int
    own: int
    own_peak: int


def gpu_cache_bytes(memory: GpuMemory, share: float) -> int:
    """Returns what a cache may take of a GPU: the process's share of it, less what the process needs otherwise.

    What others have left of the GPU counts only if it is less than that share: they may be loading still.

    Args:
        share: Of the GPU (`attention.num_gpus`), above 0.

    >>> gpu_cache_bytes(GpuMemory(total=100, free=95, own=5, own_peak=12), share=0.5)
    33
    """
    allowed = min(int(memory.total * share * GPU_MEMORY_FRACTION), memory.free + memory.own)
    return max(0, allowed - memory.own_peak)


class CacheTooSmall(ValueError):
    """A cache has no room for one sequence.

    Args:
        held: Positions that it would hold.
        needed: Positions of one full sequence.
    """

    def __init__(self, held: int, needed: int) -> None:
        super().__init__(held, needed)
        self.held = held
        self.needed = needed

    def __str__(self) -> str:
        return (
            f"the cache would hold {self.held} positions, but one sequence needs {self.needed}; raise "
            "attention.cache_tokens, or lower model.max_context or model.window, in a service file"
        )


def cache_shape(settings: NodeSettings, config: MixtralConfig) -> CacheShape:
    """Returns the shape of a node's cache."""
    window = min(settings.window or settings.max_context, settings.max_context)
    block_size = min(DEFAULT_BLOCK_SIZE, window)
    return CacheShape(config.num_layers, config.num_kv_heads, config.head_dim, window, block_size)


def make_cache(
    settings: NodeSettings, config: MixtralConfig, dtype: torch.dtype, device: torch.device, gpu_share: float = 1.0
) -> RollingCache:
    """Returns a node's cache.

    Args:
        gpu_share: How much of the GPU is this process's. What else the process needs of it is what it has needed so
            far: `attention.warming.rehearse` comes first.

    Raises:
        CacheTooSmall: `cache_tokens` (given, or what the memory allows) cannot hold one full sequence.
    """
    shape = cache_shape(settings, config)
    block_size, wanted = shape.block_size, settings.max_sequences * shape.blocks_per_sequence
    if settings.cache_tokens is not None:
        num_blocks = min(wanted, settings.cache_tokens // block_size)
    else:
        budget_bytes = _memory_budget_bytes(device, gpu_share)
        num_blocks = min(wanted, budget_bytes // (shape.bytes_per_position(dtype) * block_size))
    if num_blocks < shape.blocks_per_sequence:
        raise CacheTooSmall(num_blocks * block_size, shape.blocks_per_sequence * block_size)
    return RollingCache(shape, num_blocks, settings.max_sequences, dtype, device)


def _memory_budget_bytes(device: torch.device, gpu_share: float) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own, own_peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
        return gpu_cache_bytes(GpuMemory(total, free, own, own_peak), gpu_share)
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
