"""Weights in huge pages: read a tenth faster on a CPU (docs/performance.md), as fewer addresses are translated."""

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

HUGE_PAGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25  # Linux 6.1; mmap has no name for it


def use_huge_pages() -> int:
    """Moves what this process has allocated into huge pages; returns the bytes moved (or there already).

    Called once, after loading: malloc offers a setting for this, but only for its main arena, and a worker's
    weights are loaded by other threads. Where the system cannot, or has no huge pages left, it stays as it was.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return 0
    madvise = ctypes.CDLL(None).madvise
    pages = (start for first, end in _private_ranges(maps) for start in range(first, end, HUGE_PAGE_BYTES))
    moved = sum(
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(HUGE_PAGE_BYTES), _MADV_COLLAPSE) == 0 for start in pages
    )
    logger.info("%d MiB are in huge pages", moved * HUGE_PAGE_BYTES >> 20)
    return moved * HUGE_PAGE_BYTES


def _private_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """Yields the part of each writable anonymous mapping that whole huge pages cover; `maps` as in proc(5)."""
    for line in maps.splitlines():
        span, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and not (name and name[0].startswith("[stack")):
            first, end = (int(address, 16) for address in span.split("-"))
            yield -(-first // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, end // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
