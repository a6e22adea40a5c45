"""Prints what `cluster.lifecycle.status` found, for people: what runs, how loaded it is, and what happened last."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spec.outcome import printable

NUM_EVENTS = 12
HOST_LETTERS = 6  # of a Ray node's id: enough to tell hosts apart
NARROWEST = 100  # columns; a pipe would fold tables to 80

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


def print_status(status: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a heading, one table for each kind of part, and the last events."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    _print_heading(status, console)
    for title, columns, rows in _parts(status):
        console.print(f"\n[bold]{title}[/bold]")
        nobody = "  unknown" if status["state"] == "refused" else "  none"
        console.print(_table(columns, rows) if rows else nobody, highlight=False)
    console.print("\n[bold]last events[/bold]")
    for event in status["events"][-NUM_EVENTS:]:
        clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        colour = "red" if event["failed"] else "default"
        console.print(
            f"  {clock}  [{colour}]{escape(printable(event['text']))}[/{colour}]", highlight=False, soft_wrap=True
        )


def _print_heading(status: Mapping[str, Any], console: Console) -> None:
    controller = status["controller"]
    line = f"[bold]{escape(status['name'])}[/bold] ({escape(status['state'])}): model {escape(status['model'])}"
    line += f", version {status['spec_version']}, controller {controller['pid']} on {_host(controller)}"
    console.print(line, highlight=False, soft_wrap=True)
    resize = status.get("resize")
    if resize is not None:
        count = f" {resize['done']}/{resize['total']}" if resize["state"] == "running" and resize["total"] else ""
        stage = f", {resize['stage']}{count}" if resize["state"] == "running" else ""
        why = f": {escape(printable(resize['error']))}" if resize["error"] else ""
        text = f"last change, to version {resize['version']}: {resize['state']}{stage}{why}"
        console.print(text, highlight=False, soft_wrap=True)


def _parts(status: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Column], Sequence[Row]]]:
    yield (
        "experts",
        (
            ("shard", lambda row: str(row["shard"])),
            ("experts", lambda row: _experts(row)),
            ("replica", lambda row: str(row["replica"])),
            ("pid", lambda row: str(row["pid"] or "-")),
            ("host", _host),
            ("state", _state),
            ("rows/s", lambda row: f"{row['rows_per_s']:.0f}"),
            ("busy", _busy),
            ("queue", lambda row: str(row["queue"])),
            ("last error", lambda row: str(row["error"] or "-")),
        ),
        [{**shard, **replica} for shard in status["experts"] for replica in shard["replicas"]],
    )
    place: tuple[Column, ...] = (("pid", lambda row: str(row["pid"])), ("host", _host))
    yield "routers", (*place, ("busy", _busy)), status["routers"]
    yield (
        "attention nodes",
        (
            *place,
            ("running", lambda row: str(row.get("running", "-"))),
            ("waiting", lambda row: str(row.get("waiting", "-"))),
            ("cache used", lambda row: f"{100 * row.get('cache_used', 0.0):.1f} %"),
            ("busy", _busy),
        ),
        status["attention_nodes"],
    )
    yield (
        "gateways",
        (
            *place,
            ("prompt tokens", lambda row: str(row.get("prompt_tokens", "-"))),
            ("generated tokens", lambda row: str(row.get("generation_tokens", "-"))),
        ),
        status["gateways"],
    )


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=True)
    for name, _ in columns:
        table.add_column(name, justify="left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell(row))) for _, cell in columns))
    return table


def _experts(row: Row) -> str:
    """The experts of a shard, as ranges; with slices, which part of them."""
    first, last = row["experts"][0], row["experts"][-1]
    held = str(first) if first == last else f"{first}-{last}"
    return held if row["num_slices"] == 1 else f"{held}, slice {row['slice'] + 1} of {row['num_slices']}"


def _state(row: Row) -> str:
    return f"loading {row['loaded']:.0%}" if row["state"] == "loading" else str(row["state"])


def _host(row: Row) -> str:
    return str(row["host"])[:HOST_LETTERS] or "-"


def _busy(row: Row) -> str:
    busy = row.get("utilization")
    return "-" if busy is None else f"{100 * busy:.0f} %"
