"""A run's metrics: one JSON object a line, and the same for TensorBoard; written by the first rank alone."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
MAX_LINE_BYTES = 1 << 24  # a record counts rows for each expert of each layer
MOST_EXPERT_TAGS = 512  # of TensorBoard, which draws a chart for each


@dataclass(frozen=True)
class Record:
    """One step.

    Args:
        step: Counted from 1: steps made.
        loss: Cross-entropy in nats per label, over the whole batch.
        balance, router_z: Before their coefficients.
        gradient_norm: Before clipping.
        tokens_per_s: Over all ranks.
        rows_per_expert: Copies asked of each expert, for each layer.
        dropped_per_layer: Copies that found their expert full.
        held_out_loss: In nats per label; None: not measured in this step.
        workers: Ranks.
    """

    step: int
    loss: float
    balance: float
    router_z: float
    gradient_norm: float
    learning_rate: float
    tokens_per_s: float
    samples_seen: int
    rows_per_expert: list[list[int]]
    dropped_per_layer: list[int]
    held_out_loss: float | None
    workers: int
    expert_parallel: int


class MetricsLog:
    """Adds records to a run's files.

    Args:
        folder: The run's.
        steps_made: Where the run goes on: what was written of later steps is made again, and removed here.

    Raises:
        OSError: They cannot be written.
    """

    def __init__(self, folder: Path, steps_made: int) -> None:
        from training.board import Board  # here: whoever only reads metrics needs no TensorBoard

        path = folder / METRICS_FILE
        _cut(path, steps_made)
        self._board = Board(folder / TENSORBOARD_FOLDER, steps_made)
        self._file = path.open("a")

    def add(self, record: Record) -> None:
        """Writes one record; readers see whole lines.

        Raises:
            OSError: It cannot be written.
        """
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()
        self._board.add(record.step, _scalars(record))

    def close(self) -> None:
        """Closes the files. What `add` could not write is lost, as it has said."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


class MetricsError(ValueError):
    """A run's metrics are not what Manta writes; says where, and what to do."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns what a run has written so far; none: an empty list.

    Raises:
        MetricsError: It holds something else.
    """
    path = folder / METRICS_FILE
    _check_kind(path)
    try:
        with path.open("rb") as file:
            return list(_records(file))
    except FileNotFoundError:
        return []


class Follower:
    """Reads what a run adds to its metrics, each step once, though steps are made again after a failure.

    What is there already counts as read.

    Raises:
        MetricsError: It is not what a run writes; so does `read`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE
        self._file_id = self._offset = self._last_step = 0
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Returns the records of steps that no earlier call has returned."""
        _check_kind(self._path)
        try:
            with self._path.open("rb") as file:
                file_id = os.fstat(file.fileno()).st_ino
                if file_id != self._file_id:  # whoever goes on with a run replaces the file
                    self._file_id, self._offset = file_id, 0
                file.seek(self._offset)
                records = [record for record in _records(file) if record["step"] > self._last_step]
                self._offset = file.tell()
        except FileNotFoundError:
            return []
        self._last_step = max((record["step"] for record in records), default=self._last_step)
        return records


def _check_kind(path: Path) -> None:
    """Raises MetricsError for what is no file: a pipe would be waited for, and through a link another file written."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise MetricsError(f"{path} is a link, a folder, a pipe or a device, and no file of a run's; move it away")


def _records(file: BufferedReader) -> Iterator[dict[str, Any]]:
    """Yields what follows in a file and leaves it where the last whole line ends: the rest is being written."""
    end = file.tell()
    while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
        yield _record(line, file)
        end = file.tell()
    if len(line) == MAX_LINE_BYTES:
        raise _foreign(file)
    file.seek(end)


def _record(line: bytes, file: BufferedReader) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _foreign(file) from error
    if not isinstance(record, dict) or not isinstance(cast("dict[str, Any]", record).get("step"), int):
        raise _foreign(file)
    return cast("dict[str, Any]", record)


def _foreign(file: BufferedReader) -> MetricsError:
    what = f"{file.name}: the line that ends at byte {file.tell()} is none of a run's metrics"
    return MetricsError(f"{what}; move the file away")


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    yield "loss/training", record.loss
    if record.held_out_loss is not None:
        yield "loss/held out", record.held_out_loss
    yield "loss/balance", record.balance
    yield "loss/router z", record.router_z
    yield "training/gradient norm", record.gradient_norm
    yield "training/learning rate", record.learning_rate
    yield "training/tokens per s", record.tokens_per_s
    for layer, (counts, dropped) in enumerate(zip(record.rows_per_expert, record.dropped_per_layer, strict=True)):
        yield f"layer {layer}/share of the busiest expert", max(counts) / max(1, sum(counts))
        yield f"layer {layer}/dropped copies", dropped
        yield f"layer {layer}/dropped share", dropped / max(1, sum(counts))
    yield from _expert_scalars(record.rows_per_expert)


def _expert_scalars(rows_per_expert: list[list[int]]) -> Iterator[tuple[str, float]]:
    """The copies for each expert: in each layer, or of a large model in all together (the JSON lines have each)."""
    if sum(map(len, rows_per_expert)) <= MOST_EXPERT_TAGS:
        counted = {f"layer {layer}": counts for layer, counts in enumerate(rows_per_expert)}
    else:
        counted = {"all layers": [sum(counts) for counts in zip(*rows_per_expert, strict=True)]}
    for name, counts in counted.items():
        for expert, count in enumerate(counts):
            yield f"{name}/copies for expert {expert}", count


def _cut(path: Path, steps_made: int) -> None:
    """Removes the records of steps after `steps_made`."""
    _check_kind(path)
    if not path.exists():
        return
    scratch = path.with_suffix(".partial")
    scratch.unlink(missing_ok=True)  # it may be a link: what is written through one is another file
    try:
        with path.open("rb") as file, scratch.open("x") as kept:
            for record in _records(file):
                if record["step"] <= steps_made:
                    kept.write(json.dumps(record) + "\n")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)  # half written, it would keep room
