"""Sources to token stores, through Ray Data: read and encoded in parallel, written in order by the caller.

This process lists the files and cuts them into pieces; tasks of Ray Data encode one piece each; their blocks come back
in the pieces' order and go straight to disk. So a store is the same however many hosts and cores there are.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ray.data import DataContext, Dataset, from_items

from training.data_errors import DataError, SourceError, StoreNotWritten
from training.encoded import Encoded, Table, decode_table, encode_documents
from training.encoding import Encoder, load_encoder
from training.origin import origin_of
from training.pieces import Piece, cut, read_documents
from training.sources import Source, list_files
from training.tokens import Origin, TokenStore, TokenWriter, storage_named

FOLDER = "data"
TRAINING, HELD_OUT = "training", "held_out"
BLOCK_BYTES = 4 << 20  # Ray Data's own 128 MiB would fill the object store of a small machine
LOG_LEVELS = {  # Ray Data's warnings, such as that no CPU is free, are for the user; the rest is not
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that it shows no progress, as it was told
}

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Ingested:
    """Stores that are ready.

    Args:
        training: What to train on.
        held_out: What is kept from training; None if nothing is.
        reused: Whether they were there already.
    """

    training: TokenStore
    held_out: TokenStore | None
    reused: bool


def ingest(
    sources: Sequence[Source],
    tokenizer: Path,
    storage: Path,
    vocab_size: int,
    held_out: float = 0.0,
    progress: Progress | None = None,
    num_cpus: float = 1,
) -> Ingested:
    """Makes the token stores of some sources, or finds them as an earlier call left them.

    Ray must run unless they are found. Paths must name the same files on all of its hosts.

    Args:
        sources: What to read; documents keep this order, and within a source that of its files sorted by path.
        tokenizer: A directory with tokenizer.json, as for `load_encoder`.
        storage: Where the stores go, in `data/<fingerprint>/`.
        vocab_size: How many ids the model has rows for.
        held_out: The share of documents that is kept from training; a document's text decides.
        progress: Called with the documents and tokens written so far.
        num_cpus: CPUs that Ray sets aside for each task.

    Raises:
        DataError: Something about the sources, their files or the tokenizer; nothing is left behind.
        StoreNotWritten: `storage` cannot be written; nothing is left behind.
    """
    _check(sources, held_out)
    encoder = load_encoder(tokenizer, vocab_size)
    files = [list_files(source) for source in sources]
    origin = origin_of(sources, files, encoder, held_out)
    directory = storage / FOLDER / origin.fingerprint
    if directory.is_dir():
        return _open(directory, held_out, reused=True)
    unfinished = directory.with_name(f"{directory.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with closing(_encode(cut(sources, files), sources, encoder, held_out, num_cpus)) as tables:
            _Writers(unfinished, origin, sources[0].has_tasks, held_out).write_all(tables, progress)
        _move(unfinished, directory)
        return _open(directory, held_out, reused=False)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check(sources: Sequence[Source], held_out: float) -> None:
    if not sources:
        raise SourceError("no sources are given; name at least one file or folder to train on")
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}; it is a share of the documents, at least 0 and below 1")
    with_tasks = [source for source in sources if source.has_tasks]
    if with_tasks and len(with_tasks) < len(sources):
        without = next(source for source in sources if not source.has_tasks)
        raise SourceError(
            f"{without.path}: has no task, and {with_tasks[0].path} has one; give every source a task or task_column, "
            "or none"
        )


def _move(unfinished: Path, directory: Path) -> None:
    with storage_named(directory):
        try:
            unfinished.rename(directory)
        except OSError:
            if not directory.is_dir():  # else another process was faster, and its stores are the same
                raise


def _open(directory: Path, held_out: float, reused: bool) -> Ingested:
    kept = TokenStore.open(directory / HELD_OUT) if held_out else None
    return Ingested(TokenStore.open(directory / TRAINING), kept, reused)


def _encode_pieces(batch: Table, sources: tuple[Source, ...], encoder: Encoder, held_out: float) -> Iterator[Table]:
    """What the tasks of Ray Data run: encodes the pieces in a table with a column `piece`."""
    for text in batch["piece"].to_pylist():
        piece = Piece.from_json(text)
        documents = read_documents(piece, sources[piece.source])
        yield from encode_documents(documents, encoder, held_out)


def _encode(
    pieces: Sequence[Piece], sources: Sequence[Source], encoder: Encoder, held_out: float, num_cpus: float
) -> Generator[Encoded]:
    """The encoded documents in the order of the pieces."""
    if not pieces:
        return
    items: list[dict[str, Any]] = [{"piece": piece.to_json()} for piece in pieces]
    task = partial(_encode_pieces, sources=tuple(sources), encoder=encoder, held_out=held_out)
    with DataContext.current(_context()):
        dataset: Dataset = from_items(items, override_num_blocks=len(items)).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus
        )
    with _quiet():
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield decode_table(table)


@contextmanager
def _quiet() -> Generator[None]:
    loggers = {logging.getLogger(name): level for name, level in LOG_LEVELS.items()}
    before = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


class _Writers:
    """The stores of one call, written side by side."""

    def __init__(self, directory: Path, origin: Origin, with_tasks: bool, held_out: float) -> None:
        self._origin = origin
        self._share = held_out
        self._training = TokenWriter(directory / TRAINING, origin.vocab_size, with_tasks)
        try:
            self._held_out = TokenWriter(directory / HELD_OUT, origin.vocab_size, with_tasks) if held_out else None
        except StoreNotWritten:
            self._training.close()
            raise

    def write_all(self, tables: Iterator[Encoded], progress: Progress | None) -> None:
        """Writes and finishes the stores. Raises DataError where one of them would be empty."""
        writers = [writer for writer in (self._training, self._held_out) if writer]
        num_blank = 0
        try:
            for table in tables:
                num_blank += table.num_blank
                for writer in writers:
                    some = table.select(table.held_out == (writer is self._held_out))
                    writer.write(some.ids_N, some.lengths, some.tasks)
                if progress:
                    progress(sum(each.num_documents for each in writers), sum(each.num_tokens for each in writers))
            self._check_filled(num_blank)
            names = sorted(set[str]().union(*(writer.task_names for writer in writers)))
            for writer in writers:
                writer.finish(self._origin, names)
        finally:
            for writer in writers:
                writer.close()

    def _check_filled(self, num_blank: int) -> None:
        found = self._training.num_documents + (self._held_out.num_documents if self._held_out else 0)
        if not found:
            paths = ", ".join(source["path"] for source in self._origin.sources)
            raise SourceError(
                f"{paths}: there is no text at all ({num_blank} documents, all blank); give files with text"
            )
        for writer, what in ((self._training, "all"), (self._held_out, "none")):
            if writer and not writer.num_documents:
                raise DataError(
                    f"held_out: {self._share} chose {what} of {found} documents, by the hashes of their texts; give "
                    "more documents, another share, or 0"
                )
