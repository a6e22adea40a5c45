"""Prints what `cluster.lifecycle.status` found: plain data in, lines and tables out."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_status(status: Mapping[str, Any], console: Console | None = None, indent: int = 0) -> None:
    """Prints nested plain data: `name: value` lines, a table for each list of mappings, deeper levels indented."""
    console = console or Console()
    for key, value in status.items():
        title = f"{' ' * indent}[bold]{escape(_words(key))}[/bold]"
        if isinstance(value, Mapping) and value:
            console.print(title)
            print_status(value, console, indent + 2)
        elif _is_rows(value):
            console.print(title)
            console.print(_table(value))
        else:
            console.print(f"{title}: {escape(_plain(value))}", highlight=False)


def _is_rows(value: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One column for every key that occurs, in the order of first occurrence."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=None, pad_edge=True)
    for column in columns:
        table.add_column(escape(_words(column)), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_plain(row.get(column))) for column in columns))
    return table


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "-"
    return str(value)
