"""Pieces: the parts of the sources that are read in parallel, and put together again in this order."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from training.documents import Document, undecodable, unreadable
from training.json_lines import read_lines
from training.parquet import read_row_groups, row_group_bytes
from training.sources import JSON_LINES, TEXT, Source, SourceFile

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 1 << 18, 1 << 25
WANTED_PIECES = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive documents of one source.

    Args:
        source: The source's index.
        format: One of `training.sources.FORMATS`.
        paths: Whole text files; of another format just one file.
        start: The first byte (JSON lines) or row group (Parquet) of the file.
        stop: One past the last.
    """

    source: int
    format: str
    paths: tuple[str, ...]
    start: int = 0
    stop: int = 0

    def to_json(self) -> str:
        """For another process. JSON, because a path may be no UTF-8."""
        return json.dumps(astuple(self))

    @staticmethod
    def from_json(text: str) -> "Piece":
        """What `to_json` wrote."""
        source, kind, paths, start, stop = json.loads(text)
        return Piece(source, kind, tuple(paths), start, stop)


def cut(sources: Sequence[Source], files: Sequence[Sequence[SourceFile]]) -> list[Piece]:
    """Cuts all sources into pieces of about the same size, whose documents in turn are those of the sources in turn.

    Args:
        sources: What to read.
        files: The files of each source.

    Raises:
        SourceError: A Parquet file cannot be read, or lacks a column.
    """
    total = sum(file.num_bytes for each in files for file in each)
    piece_bytes = min(max(total // WANTED_PIECES, MIN_PIECE_BYTES), MAX_PIECE_BYTES)
    return [
        piece
        for index, (source, its_files) in enumerate(zip(sources, files, strict=True))
        for piece in _cut_source(index, source, its_files, piece_bytes)
    ]


def read_documents(piece: Piece, source: Source) -> Iterator[Document]:
    """The documents of a piece, in order.

    Raises:
        SourceError: Something in it is no text; names the file and the row.
    """
    if piece.format == TEXT:
        yield from (_read_text(path, source) for path in piece.paths)
        return
    [path] = piece.paths
    read = read_lines if piece.format == JSON_LINES else read_row_groups
    try:
        yield from read(path, piece.start, piece.stop, source)
    except OSError as error:
        raise unreadable(error, path) from error


def _read_text(path: str, source: Source) -> Document:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # newline: a text is what its bytes say
            return Document(file.read(), source.task, lambda: path)
    except UnicodeDecodeError as error:
        raise undecodable(error, path) from error
    except OSError as error:
        raise unreadable(error, path) from error


def _cut_source(index: int, source: Source, files: Sequence[SourceFile], piece_bytes: int) -> Iterator[Piece]:
    together: list[str] = []  # text files that are too small for a piece of their own
    size = 0
    for file in files:
        if file.format == TEXT:
            together.append(file.path)
            size += file.num_bytes
        if together and (file.format != TEXT or size >= piece_bytes):
            yield Piece(index, TEXT, tuple(together))
            together, size = [], 0
        if file.format == JSON_LINES:
            for start in range(0, file.num_bytes, piece_bytes):
                yield Piece(index, JSON_LINES, (file.path,), start, min(start + piece_bytes, file.num_bytes))
        elif file.format != TEXT:
            yield from _cut_row_groups(index, source, file, piece_bytes)
    if together:
        yield Piece(index, TEXT, tuple(together))


def _cut_row_groups(index: int, source: Source, file: SourceFile, piece_bytes: int) -> Iterator[Piece]:
    sizes = row_group_bytes(file.path, source)
    start = size = 0
    for group, num_bytes in enumerate(sizes):
        size += num_bytes
        if size >= piece_bytes or group + 1 == len(sizes):
            yield Piece(index, file.format, (file.path,), start, group + 1)
            start, size = group + 1, 0
