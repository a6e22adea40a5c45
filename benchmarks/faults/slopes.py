"""How the memory of a service's processes goes over hours: of each, for as long as it lived."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from statistics import linear_regression

from benchmarks.faults.census import Process
from benchmarks.faults.footprint import held

LEAST_LOOKS = 5  # a line through fewer says nothing
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Slope:
    """One process: for how long it was seen, its memory at the first and last look, and what it gains an hour."""

    kind: str
    pid: int
    seconds: float
    first_mib: float
    last_mib: float
    mib_per_hour: float


class MemoryLog:
    """Looks at processes of this host now and then; each look costs a few reads."""

    def __init__(self) -> None:
        self._seen: dict[Process, list[tuple[float, float]]] = {}

    def take(self, processes: Iterable[Process], now_s: float) -> None:
        """Looks once at each of them; those that have just ended are left out."""
        for process in processes:
            if (found := held(process.pid)) is not None:
                self._seen.setdefault(process, []).append((now_s, found[0]))

    async def take_every(self, seconds: float, serving: Callable[[], Awaitable[list[Process]]]) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            self.take(await serving(), time.perf_counter())
            await asyncio.sleep(seconds)

    def slopes(self) -> list[Slope]:
        """Those that were seen often enough, the steepest first."""
        found = [_slope(process, looks) for process, looks in self._seen.items() if len(looks) >= LEAST_LOOKS]
        return sorted(found, key=lambda one: -one.mib_per_hour)


def _slope(process: Process, looks: list[tuple[float, float]]) -> Slope:
    times_s, mib = zip(*looks, strict=True)
    slope, _ = linear_regression(times_s, mib)
    return Slope(process.kind, process.pid, times_s[-1] - times_s[0], mib[0], mib[-1], slope * HOUR_S)
