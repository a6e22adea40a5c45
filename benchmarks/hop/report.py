"""Shows hop measurements as a table."""

import os
from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.hop.runner import HopResult, HopSettings
from benchmarks.hop.transports import TRANSPORTS
from transport.cores import available_cores

TABLE_WIDTH = 100


def best_runs(results: Sequence[HopResult]) -> list[HopResult]:
    """Each transport's run with the lowest median, in the order in which the transports were first measured."""
    best: dict[str, HopResult] = {}
    for result in results:
        if result.transport not in best or result.median_ms < best[result.transport].median_ms:
            best[result.transport] = result
    return list(best.values())


def table(results: Sequence[HopResult], settings: HopSettings) -> Table:
    """One row per transport."""
    title = f"{settings.num_rows}×{settings.width} fp32 rows to each of {settings.num_peers} processes and back"
    shown = Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
    shown.add_column("transport", no_wrap=True)
    shown.add_column("what it is", no_wrap=True)
    for heading in ("median ms", "p90 ms", "p99 ms", "death seen ms"):
        shown.add_column(heading, justify="right")
    for result in best_runs(results):
        times = (result.median_ms, result.p90_ms, result.p99_ms)
        death = "-" if result.death_seen_ms is None else f"{result.death_seen_ms:.1f}"
        what = TRANSPORTS[result.transport].what
        shown.add_row(result.transport, what, *(f"{time_ms:.3f}" for time_ms in times), death)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    shown.caption = f"processes: {settings.start}; load averages {load} on {available_cores()} processors"
    return shown
