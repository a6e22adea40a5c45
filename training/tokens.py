"""Token stores: documents as token ids on disk, read through memory maps and written in bounded memory.

A store is a folder of little-endian arrays:

tokens.bin    the ids of all documents, end to end: uint16 where the vocabulary fits, else uint32
offsets.bin   int64, one more than documents: document i is tokens[offsets[i] : offsets[i + 1]]
tasks.bin     int32, each document's index in `task_names`; only where documents have tasks
store.json    what the others hold and where it is from; written last, so that a store with one is whole

Legend: N tokens.
"""

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from training.data_errors import StoreError, StoreNotWritten
from training.plain_files import NotPlain, parse_plain, read_bounded

FORMAT_VERSION = 1
TOKENS, OFFSETS, TASKS, STORE = "tokens.bin", "offsets.bin", "tasks.bin", "store.json"
OFFSET_TYPE, TASK_TYPE = np.dtype("<i8"), np.dtype("<i4")
MAX_STORE_BYTES = 1 << 26  # of store.json
CHUNK = 1 << 20  # documents whose tasks are renumbered at once
REMEDY = "Remove the folder: the next run reads the sources again."
ROOM = "make room there, or see to it that it can be written, and start the run again"

Ids: TypeAlias = NDArray[np.unsignedinteger[Any]]
Count = Annotated[int, Field(ge=1, lt=1 << 53)]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store was made of.

    Args:
        fingerprint: A hash of everything that the tokens depend on; equal fingerprints, equal tokens.
        tokenizer_hash: A hash of the tokenizer and of the tokens it sets around documents.
        vocab_size: All ids are below it.
        eos_id: The id that ends each document.
        sources: What the user named, with a summary of the files found.
    """

    fingerprint: str
    tokenizer_hash: str
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    eos_id: Annotated[int, Field(ge=0)]
    sources: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What store.json says. `task_names` is empty in a store without tasks."""

    origin: Origin
    num_documents: Count
    num_tokens: Count
    task_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Version:
    """What store.json says in every format."""

    format_version: int


_VERSION, _INFO = TypeAdapter(_Version), TypeAdapter(StoreInfo)


def token_type(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest type that holds all ids of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenStore:
    """A whole store, open for reading. Memory maps: nothing is read before it is asked for.

    Attributes:
        tokens_N: The ids of all documents, end to end.
        offsets: int64, `num_documents` + 1: where each document starts, and where the last one ends.
        tasks: int32, each document's index in `info.task_names`; None in a store without tasks.
    """

    def __init__(self, directory: Path, info: StoreInfo) -> None:
        self.directory = directory
        self.info = info
        self.tokens_N: Ids = np.memmap(directory / TOKENS, token_type(info.origin.vocab_size), "r")
        self.offsets: NDArray[np.int64] = np.memmap(directory / OFFSETS, OFFSET_TYPE, "r")
        self.tasks: NDArray[np.int32] | None = np.memmap(directory / TASKS, TASK_TYPE, "r") if info.task_names else None

    @classmethod
    def open(cls, directory: Path) -> "TokenStore":
        """Opens the store in `directory`.

        Raises:
            StoreError: There is none, or its files are not what its store.json says.
        """
        info = _read_info(directory)
        for name, wanted in _sizes(info).items():
            path = directory / name
            found = path.stat().st_size if path.is_file() else None
            if found != wanted:
                what = "is missing" if found is None else f"has {found} bytes"
                raise StoreError(f"{path}: {what}, and {STORE} says {wanted} bytes. {REMEDY}")
        store = cls(directory, info)
        if store.offsets[0] != 0 or store.offsets[-1] != info.num_tokens:
            raise StoreError(f"{directory / OFFSETS}: does not span the {info.num_tokens} tokens. {REMEDY}")
        return store

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Whether a store was finished in `directory`."""
        return (directory / STORE).is_file()

    def document(self, index: int) -> Ids:
        """The ids of one document, without copying them."""
        return self.tokens_N[self.offsets[index] : self.offsets[index + 1]]


class TokenWriter:
    """Writes a store, document after document; what is not finished is no store.

    Args:
        directory: Where to; made if need be. A store in it is no store from now on.
        vocab_size: All ids are below it.
        with_tasks: Whether documents belong to tasks.

    Raises:
        StoreNotWritten: The folder cannot be made or written; so do `write` and `finish`.
    """

    def __init__(self, directory: Path, vocab_size: int, with_tasks: bool = False) -> None:
        self.directory = directory
        self.num_documents = 0
        self.num_tokens = 0
        self._vocab_size = vocab_size
        self._task_ids: dict[str, int] = {}  # numbered as they appear; finish() knows them all and numbers them anew
        with storage_named(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in (STORE, TOKENS, OFFSETS, TASKS):  # a link is replaced, not written through
                (directory / name).unlink(missing_ok=True)
            self._tokens = (directory / TOKENS).open("wb")
            self._offsets = (directory / OFFSETS).open("wb")
            self._tasks = (directory / TASKS).open("wb") if with_tasks else None
            self._offsets.write(np.zeros(1, OFFSET_TYPE).data)

    @property
    def task_names(self) -> frozenset[str]:
        """The tasks of the documents so far."""
        return frozenset(self._task_ids)

    def write(self, ids_N: Ids, lengths: NDArray[np.int64], tasks: Sequence[str] = ()) -> None:
        """Appends documents.

        Args:
            ids_N: Their ids, end to end.
            lengths: How many ids each has; at least 1.
            tasks: The name of each one's task; empty in a store without tasks.
        """
        assert lengths.sum() == len(ids_N), "the documents must span the ids"
        assert not len(lengths) or lengths.min() > 0, "a document has at least its end"
        assert not len(ids_N) or ids_N.max() < self._vocab_size, "an id beyond the vocabulary"
        assert len(tasks) == (len(lengths) if self._tasks else 0), "each document has a task, or none has"
        numbers = [self._task_ids.setdefault(name, len(self._task_ids)) for name in tasks]
        with storage_named(self.directory):  # not `tofile`, whose errors do not say why, and which keeps some to itself
            self._tokens.write(np.ascontiguousarray(ids_N, token_type(self._vocab_size)).data)
            self._offsets.write((self.num_tokens + np.cumsum(lengths)).astype(OFFSET_TYPE).data)
            if self._tasks:
                self._tasks.write(np.array(numbers, TASK_TYPE).data)
        self.num_documents += len(lengths)
        self.num_tokens += len(ids_N)

    def finish(self, origin: Origin, task_names: Sequence[str] | None = None) -> TokenStore:
        """Writes store.json, which makes it a store, and opens it.

        Args:
            origin: What the documents are from.
            task_names: All names that ids stand for, at least those written; default: those written, sorted.

        Raises:
            StoreError: There are no documents.
        """
        if not self.num_documents:
            raise StoreError(f"{self.directory}: no documents were written; a store holds at least one")
        names = tuple(sorted(self._task_ids) if task_names is None else task_names)
        info = StoreInfo(origin, self.num_documents, self.num_tokens, names if self._tasks else ())
        with storage_named(self.directory):
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            if self._tasks:
                places = {name: place for place, name in enumerate(names)}
                _renumber(self.directory / TASKS, [places[name] for name in self._task_ids])
            _write_info(self.directory, info)
        self.close()
        return TokenStore.open(self.directory)

    def close(self) -> None:
        """Lets go of its files. Without `finish` before, what is there is no store."""
        for file in self._files:
            with suppress(OSError):  # what it had still to write
                file.close()

    @property
    def _files(self) -> list[BufferedWriter]:
        return [file for file in (self._tokens, self._offsets, self._tasks) if file]


@contextmanager
def storage_named(directory: Path) -> Generator[None]:
    """Says of a failure to write where it was, and what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise StoreNotWritten(f"tokens cannot be written in {directory}: {why}; {ROOM}") from error


def _renumber(path: Path, new_ids: list[int]) -> None:
    tasks = np.memmap(path, TASK_TYPE, "r+")
    table = np.array(new_ids, TASK_TYPE)
    for start in range(0, len(tasks), CHUNK):
        tasks[start : start + CHUNK] = table[tasks[start : start + CHUNK]]
    tasks.flush()


def _sizes(info: StoreInfo) -> dict[str, int]:
    sizes = {
        TOKENS: info.num_tokens * token_type(info.origin.vocab_size).itemsize,
        OFFSETS: (info.num_documents + 1) * OFFSET_TYPE.itemsize,
    }
    if info.task_names:
        sizes[TASKS] = info.num_documents * TASK_TYPE.itemsize
    return sizes


def _write_info(directory: Path, info: StoreInfo) -> None:
    partial = directory / f"{STORE}.partial"
    partial.unlink(missing_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"format_version": FORMAT_VERSION, **asdict(info)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / STORE)


def _read_info(directory: Path) -> StoreInfo:
    path = directory / STORE
    try:
        text = read_bounded(path, MAX_STORE_BYTES)
        version = parse_plain(text, _VERSION, STORE).format_version
        if version != FORMAT_VERSION:
            raise StoreError(f"{path}: is of format {version}, and this release reads {FORMAT_VERSION}. {REMEDY}")
        return parse_plain(text, _INFO, STORE)
    except FileNotFoundError as error:
        raise StoreError(f"{directory}: holds no {STORE}, so it is no whole token store. {REMEDY}") from error
    except NotPlain as error:
        raise StoreError(f"{path}: is not what Manta writes ({error}). {REMEDY}") from error
