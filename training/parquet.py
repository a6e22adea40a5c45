"""Parquet: a document in each row, read by row groups so that several processes share one file."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.data_errors import SourceError
from training.documents import Document, document_of_row, missing_column, undecodable, unreadable
from training.sources import Source

ROWS_AT_ONCE = 256


def row_group_bytes(path: str, source: Source) -> list[int]:
    """The uncompressed size of each row group of a file, whose columns are checked.

    Raises:
        SourceError: It is no Parquet file, or has no column of text where the source names one.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise unreadable(error, path) from error
    _check_column(schema, source.column, path)
    if source.task_column is not None:
        _check_column(schema, source.task_column, path, or_integer=True)
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def read_row_groups(path: str, start: int, stop: int, source: Source) -> Iterator[Document]:
    """The documents of row groups `start` to `stop` of a file.

    Raises:
        SourceError: A row lacks text, or the file is damaged.
    """
    columns = [source.column] if source.task_column is None else [source.column, source.task_column]
    try:
        with pq.ParquetFile(path) as file:
            number = sum(file.metadata.row_group(group).num_rows for group in range(start))
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=list(range(start, stop)), columns=columns):
                for row in _rows(batch, f"{path}, rows {number + 1} to {number + batch.num_rows}"):
                    number += 1
                    where = f"{path}, row {number}"
                    yield document_of_row(row, source, lambda where=where: where)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(error, path) from error


def _rows(batch: Any, where: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # whoever wrote it did not look
        raise undecodable(error, where) from error


def _check_column(schema: Any, column: str, path: str, or_integer: bool = False) -> None:
    if column not in schema.names:
        raise missing_column(column, schema.names, path)
    if schema.names.count(column) > 1:
        raise SourceError(f"{path}: there are several columns {column!r}; rename or remove all but one")
    kind = schema.field(column).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)
    if not is_text and not (or_integer and pa.types.is_integer(values)):
        allowed = "text or whole numbers" if or_integer else "text"
        raise SourceError(f"{path}: column {column!r} is of type {kind}, not {allowed}; name another column")
