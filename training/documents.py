"""Documents: what a file or a row of a source is once it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.data_errors import SourceError
from training.sources import MAX_DOCUMENT_BYTES, Source, too_long

NAMED_COLUMNS = 8  # of a row that lacks one, in an error


@dataclass(frozen=True, slots=True)
class Document:
    """One text to train on.

    Args:
        text: All of it.
        task: The name of its task, if it has one.
        where: Names its file and row. A function, because finding a line's number takes reading what is before it.
    """

    text: str
    task: str | None
    where: Callable[[], str]


def document_of_row(row: Mapping[str, Any], source: Source, where: Callable[[], str]) -> Document:
    """The document in a row of a table.

    Raises:
        SourceError: A column is missing or has no text.
    """
    text = _cell(row, source.column, where)
    if not isinstance(text, str):
        raise SourceError(
            f"{where()}: column {source.column!r} holds {_kind(text)}, not text; name another column, or remove the row"
        )
    if len(text) > MAX_DOCUMENT_BYTES // 4:  # to count bytes takes time
        _check_length(text, where)
    return Document(text, _task(row, source, where), where)


def _check_length(text: str, where: Callable[[], str]) -> None:
    if len(text.encode(errors="surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise too_long(where())


def missing_column(column: str, columns: list[str], where: str) -> SourceError:
    """The error for a row or a table without a column that the source names."""
    some = ", ".join(columns[:NAMED_COLUMNS]) + (", ..." if len(columns) > NAMED_COLUMNS else "")
    return SourceError(f"{where}: there is no column {column!r} (found: {some or 'none'}); name one of those")


def undecodable(error: UnicodeError, where: str) -> SourceError:
    """The error for bytes that are not UTF-8."""
    at = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
    return SourceError(f"{where}: is not UTF-8 text{at} ({error.args[-1]}); convert it to UTF-8, or leave it out")


def unreadable(error: Exception, where: str) -> SourceError:
    """The error for a file that went away, or that this host cannot read."""
    return SourceError(f"{where}: cannot be read ({error}); every host must see it, whole and at the same path")


def _task(row: Mapping[str, Any], source: Source, where: Callable[[], str]) -> str | None:
    if source.task_column is None:
        return source.task
    task = _cell(row, source.task_column, where)
    if isinstance(task, int) and not isinstance(task, bool):
        return str(task)
    if isinstance(task, str) and task.strip():
        return _encodable(task, where)
    raise SourceError(
        f"{where()}: column {source.task_column!r} holds {_kind(task)}, not the name of a task; give each row the name "
        "or the number of one"
    )


def _encodable(task: str, where: Callable[[], str]) -> str:
    try:
        task.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as a JSON escape can bring in
        raise undecodable(error, where()) from error
    return task


def _cell(row: Mapping[str, Any], column: str, where: Callable[[], str]) -> Any:
    if column not in row:
        raise missing_column(column, list(row), where())
    return row[column]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    return f"{type(value).__name__} ({str(value)[:40]})"
