"""JSON lines: a document in each line, read by ranges of bytes so that several processes share one file."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from training.data_errors import SourceError
from training.documents import Document, document_of_row, undecodable
from training.sources import Source

UTF8_MARK = b"\xef\xbb\xbf"
COUNTED_BYTES = 1 << 20


def read_lines(path: str, start: int, stop: int, source: Source) -> Iterator[Document]:
    """The documents whose lines start at bytes `start` to `stop` of a file; empty lines are none.

    Example: of the lines `{..}\\n{..}\\n` with 10 bytes each, the range 0..11 has both and 11..20 has none.

    Raises:
        SourceError: A line is no JSON object, or lacks text.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # the line that started before; just its end if one starts at `start`
        position = file.tell()
        while position < stop and (line := file.readline()):
            if line.strip(b" \t\r\n" + UTF8_MARK):
                where = partial(_line_number, path, position)
                yield document_of_row(_row(line, where, first=position == 0), source, where)
            position += len(line)


def _row(line: bytes, where: "partial[str]", first: bool) -> dict[str, Any]:
    try:
        row = json.loads(line.removeprefix(UTF8_MARK if first else b"").decode())
    except UnicodeDecodeError as error:
        raise undecodable(error, where()) from error
    except ValueError as error:
        raise SourceError(f"{where()}: is not JSON ({error}); each line holds one object") from error
    except RecursionError as error:
        raise SourceError(f"{where()}: nests its values too deeply to be read; remove the line") from error
    if not isinstance(row, dict):
        raise SourceError(f"{where()}: holds {type(row).__name__}, not an object; each line holds one object")
    return cast("dict[str, Any]", row)


def _line_number(path: str, position: int) -> str:
    """Names the line that starts at byte `position`."""
    number = 1
    with open(path, "rb") as file:
        while position > 0 and (read := file.read(min(COUNTED_BYTES, position))):
            number += read.count(b"\n")
            position -= len(read)
    return f"{path}, line {number}"
