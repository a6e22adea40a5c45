"""`manta plan` and `manta apply`: shows the changes, asks, and follows them."""

import json
import sys
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.lifecycle import Change, Plan, apply, plan, rotate_keys
from cluster.spec import load_spec
from manta.progress import StartDisplay
from spec.outcome import printable

COLOURS = {"live": "green", "rolling": "yellow", "refused": "red"}


def show_plan(file: str, as_json: bool, address: str | None, timeout_s: float) -> None:
    """Prints how the file differs from what runs."""
    found = plan(load_spec(file), address, timeout_s)
    if as_json:
        changes = [asdict(change) for change in found.changes]
        typer.echo(json.dumps({"service": found.wanted.name, "changes": changes}, indent=2))
    else:
        print_plan(found, Console())


def apply_file(file: str, yes: bool, address: str | None, timeout_s: float | None, rotate: bool = False) -> None:
    """Shows the changes, asks unless told not to, and makes them.

    Args:
        rotate: Whether the data-plane key is changed, too, after that.

    Raises:
        ValueError: A change is refused.
        RuntimeError: It failed and was rolled back; says why.
    """
    console = Console()
    found = plan(load_spec(file), address)
    print_plan(found, console)
    if found.changes and not (yes or found.refused):
        if sys.stdin is None or not sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison] - `<&-`
            raise ValueError("apply asks before it changes anything, and there is nobody to ask: give --yes")
        typer.confirm("Make these changes?", abort=True)
    with StartDisplay(console) as display:
        apply(found, address, display.update, timeout_s)
        if rotate:
            rotate_keys(found.wanted.name, address, display.update, timeout_s)
    console.print(f"Done in {display.elapsed_s:.1f} s: {found.wanted.name} is what {file} says.", highlight=False)


def print_plan(found: Plan, console: Console) -> None:
    """Prints one line for each change."""
    if not found.changes:
        console.print(f"{found.wanted.name} is what the file says: nothing to change.", highlight=False)
        return
    table = Table(box=None, pad_edge=False, title=f"Changes of {found.wanted.name}", title_justify="left")
    for column in ("field", "runs", "file", "how", "what happens"):
        table.add_column(column, overflow="fold")
    for change in found.changes:
        table.add_row(*_cells(change))
    console.print(table)


def _cells(change: Change) -> tuple[str, ...]:
    colour = COLOURS[change.how]
    how = f"[{colour}]{change.how}[/{colour}]"
    return escape(change.field), _shown(change.before), _shown(change.after), how, escape(change.note)


def _shown(value: object) -> str:
    return escape(printable("-" if value is None else str(value)))
