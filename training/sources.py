"""What to train on: the sources that a user names, and the files they stand for. Only lists; opens no file."""

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data_errors import SourceError

TEXT, JSON_LINES, PARQUET = "text", "jsonl", "parquet"
AUTO = "auto"
FORMATS = (TEXT, JSON_LINES, PARQUET)
SUFFIXES = {
    ".txt": TEXT,
    ".text": TEXT,
    ".md": TEXT,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".parquet": PARQUET,
}
KNOWN = ", ".join(SUFFIXES)
MAX_DOCUMENT_BYTES = 64 << 20  # of one, which is encoded as a whole: that takes 150 times its memory
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True, slots=True)
class Source:
    """Files to train on.

    Args:
        path: A file, a folder (read recursively, hidden files left out) or a glob (`**` crosses folders).
        format: `text` (a file is a document), `jsonl` or `parquet` (a row is a document) for every file of the source;
            `auto` goes by each file's suffix.
        column: Where a row has its text.
        task: The task of all its documents.
        task_column: Where a row has the name of its task.

    Raises:
        SourceError: The format is unknown, or both `task` and `task_column` are given.
    """

    path: str
    format: str = AUTO
    column: str = "text"
    task: str | None = None
    task_column: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be told without the disk."""
        if self.format not in (AUTO, *FORMATS):
            raise SourceError(f"{self.path}: unknown format {self.format!r}; use one of {', '.join((AUTO, *FORMATS))}")
        if self.task is not None and self.task_column is not None:
            raise SourceError(
                f"{self.path}: has task {self.task!r} and task_column {self.task_column!r}; a document has one task, "
                "so give one of the two"
            )
        if self.task is not None and not self.task.strip():
            raise SourceError(f"{self.path}: the name of its task is empty; name it, or leave task out")

    @property
    def has_tasks(self) -> bool:
        """Whether its documents belong to tasks."""
        return self.task is not None or self.task_column is not None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, as it was when it was listed. `format` is one of FORMATS."""

    path: str
    format: str
    num_bytes: int
    mtime_ns: int


def list_files(source: Source) -> list[SourceFile]:
    """The files of a source, sorted by path: the order in which their documents are stored.

    Raises:
        SourceError: There is no such path, no file under it, or a file whose format cannot be told.
    """
    return [_source_file(path, source) for path in sorted(_paths(source))]


def _paths(source: Source) -> list[str]:
    path = source.path
    if "://" in path:
        raise SourceError(f"{path}: is a URL; give a path that all hosts see, such as a mounted folder")
    if os.path.isdir(path):
        return list(_files_under(path)) or _nothing(f"{path}: the folder holds no files")
    if os.path.lexists(path):
        return [path]
    if glob.has_magic(path):
        found = [each for each in glob.glob(path, recursive=True) if os.path.isfile(each)]
        return found or _nothing(f"{path}: no file matches")
    raise SourceError(f"{path}: there is no such file or folder; correct the path (globs may use *, ** and ?)")


def _nothing(what: str) -> list[str]:
    raise SourceError(f"{what}; hidden ones do not count. Give a path with {', '.join(FORMATS)} files")


def _files_under(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(root, name)):  # followed, it might never end; left out, data would be lost
                raise SourceError(
                    f"{os.path.join(root, name)}: is a link to a folder, which is not followed; replace it by the "
                    "folder, or move it away and make what it points to a source of its own"
                )
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def _source_file(path: str, source: Source) -> SourceFile:
    try:
        found = os.stat(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); repair or remove it") from error
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for whoever writes to it; a device may never end
        raise SourceError(f"{path}: is a pipe, a socket or a device; write what it gives to a file, or move it away")
    file = SourceFile(path, _format_of(path, source), found.st_size, found.st_mtime_ns)
    if file.format == TEXT and file.num_bytes > MAX_DOCUMENT_BYTES:
        raise too_long(path)
    return file


def too_long(where: str) -> SourceError:
    """The error for a document that would take more memory than hosts have."""
    return SourceError(
        f"{where}: a document may have {MAX_DOCUMENT_BYTES} bytes, and a text file is one; cut it, such as by `split "
        "-C 16m --additional-suffix=.txt`, or make JSON lines of it"
    )


def _format_of(path: str, source: Source) -> str:
    if source.format != AUTO:
        return source.format
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in COMPRESSED:
        raise SourceError(f"{path}: is compressed, and not read so; unpack it (Parquet may be compressed inside)")
    raise SourceError(
        f"{path}: no format is known by its suffix {suffix!r} (known: {KNOWN}); set the source's format to one of "
        f"{', '.join(FORMATS)}, or choose its files with a glob"
    )
