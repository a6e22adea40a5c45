"""What every call of a target must keep to: memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
MAX_MIB = 64  # that one input may add
QUICK_S = 0.002  # pages for 64 MiB cannot be touched in less, so shorter calls are not looked at


class TooMuchMemory(AssertionError):
    """One input made the process hold far more than it had."""


class Guarded:
    """Calls `one`, and raises TooMuchMemory where the process held over `max_mib` more meanwhile than before.

    What was held at its peak is taken from the kernel, so that memory of C and Rust counts, and what was freed too.
    """

    def __init__(self, one: Callable[[bytes], None], max_mib: int = MAX_MIB) -> None:
        self._one = one
        self._max_mib = max_mib
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._page_mib = os.sysconf("SC_PAGE_SIZE") / MIB
        _forget_peak()

    def __call__(self, data: bytes) -> None:
        before_mib, began_s = self._held_mib(), time.perf_counter()
        try:
            self._one(data)
        finally:
            if time.perf_counter() - began_s > QUICK_S:
                self._check(before_mib)

    def _held_mib(self) -> float:
        return int(os.pread(self._statm, 64, 0).split()[1]) * self._page_mib

    def _check(self, before_mib: float) -> None:
        more_mib = _peak_mib() - before_mib
        _forget_peak()
        if more_mib > self._max_mib:
            raise TooMuchMemory(f"one input made the process hold {more_mib:.0f} MiB more; {self._max_mib} are allowed")


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
