"""Shows load results as a table with ratios against the first target, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.load import LoadResult, Spread, ratio
from benchmarks.machine import machine

TABLE_WIDTH = 128


def table(results: Sequence[LoadResult]) -> Table:
    """One row per concurrency and target, in the order given; the ratio is to the first target of that concurrency."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    shown.add_column("conc", justify="right", no_wrap=True)
    shown.add_column("target", overflow="fold")
    for heading in ("ok", "failed", "out tok/s", "ratio", "TTFT ms", "TPOT ms", "ITL ms", "e2e ms", "client"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.caption = (
        "latencies: p50 / p99. ratio: output tok/s against the first target at the same concurrency. "
        "client: processor share that measuring took."
    )
    reference: LoadResult | None = None
    for result in results:
        if reference is None or reference.concurrency != result.concurrency:
            shown.add_section()
            reference = result
        shown.add_row(*row(result, reference))
    return shown


def open_console() -> Console:
    """A console wide enough for the table, whatever the terminal: a pipe or a log gets whole rows too."""
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    return console


def row(result: LoadResult, reference: LoadResult) -> list[str]:
    """The cells of one row."""
    relative = ratio(result.output_tokens_per_s, reference.output_tokens_per_s)
    return [
        str(result.concurrency),
        result.target,
        str(result.num_completed),
        f"[red]{result.num_failed}[/red]" if result.num_failed else "0",
        f"{result.output_tokens_per_s:.1f}",
        "-" if relative is None else f"{relative:.2f}x",
        *(cell(part) for part in (result.ttft, result.tpot, result.itl, result.e2e)),
        f"{result.client_cpu_share:.0%}",
    ]


def cell(part: Spread | None) -> str:
    """A spread as "median / 99th percentile", with the digits that mean something."""
    if part is None:
        return "-"
    digits = 0 if part.p50_ms >= 100 else 1
    return f"{part.p50_ms:.{digits}f} / {part.p99_ms:.{digits}f}"


def remarks(results: Sequence[LoadResult]) -> list[str]:
    """What a reader must know before trusting the figures: failures, and answers shorter than asked for."""
    lines: list[str] = []
    for result in results:
        where = f"{result.target} at concurrency {result.concurrency}"
        lines += [f"{where}: {count} failed: {message}" for message, count in result.errors.items()]
        if result.num_short:
            lines.append(
                f"{where}: {result.num_short} of {result.num_completed} answers were shorter than asked for; "
                "does the server honour ignore_eos?"
            )
    return lines


def as_json(results: Sequence[LoadResult], arguments: dict[str, Any]) -> str:
    """Everything measured, with the arguments and the machine it was measured on."""
    document = {"arguments": arguments, "machine": machine(), "results": [asdict(result) for result in results]}
    return json.dumps(document, indent=2, default=str) + "\n"
