"""Huge pages: what is chosen, and that nothing is lost by the move."""

from pathlib import Path

import pytest
import torch

from model.huge_pages import HUGE_PAGE_BYTES, use_huge_pages
from model.huge_pages import _private_ranges as private_ranges  # pyright: ignore[reportPrivateUsage]

MAPS = """\
200000-7fffff rw-p 00000000 00:00 0
900000-c00000 rw-p 00000000 00:00 0                          [heap]
e00000-1000000 r--p 00000000 00:00 0
1200000-1600000 rw-p 00000000 fe:00 5416804                  /usr/lib/libtorch.so
1800000-1a00000 rw-s 00000000 00:01 12                       /dev/shm/x
2000000-2400000 rw-p 00000000 00:00 0                        [stack]
2600000-2700000 rw-p 00000000 00:00 0
"""


def anonymous_huge_bytes() -> int:
    """What the kernel says of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def test_whole_pages_of_private_writable_memory_are_chosen() -> None:
    ranges = [(first, end) for first, end in private_ranges(MAPS) if first < end]
    assert ranges == [(0x200000, 0x600000), (0xA00000, 0xC00000)]


def test_memory_keeps_what_it_holds(seed: int) -> None:
    weights = torch.randn(16 * HUGE_PAGE_BYTES // 4, generator=torch.Generator().manual_seed(seed))
    before = weights.double().sum().item()
    moved = use_huge_pages()
    assert weights.double().sum().item() == before
    if moved == 0:
        pytest.skip("this system has no huge pages to give")
    assert moved <= anonymous_huge_bytes()
