"""Which checkpoints of a run there are, and what each says of itself. Nothing here reads tensors.

A damaged checkpoint is in nobody's way unless it is the one to go on from: they are listed by name.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT_FOLDER = "checkpoints"  # in a run's folder
PROGRESS_FILE = "progress.json"
FORMAT = 1
PARTIAL = ".partial"
REMEDY = "make room there, or see to it that it can be written, and start the run again: it goes on"
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, why, and what is left."""


class OtherRun(CheckpointError):
    """A checkpoint is of a run that this one cannot go on with; another try would end alike."""


class DamagedCheckpoint(CheckpointError):
    """What a checkpoint holds is not what was written, or is of another format; another try would end alike."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come.

    Args:
        step: Steps made.
        samples_seen: Training sequences seen: where the data goes on.
        data: Names what they were, and their order.
    """

    step: int
    samples_seen: int
    data: str


@dataclass(frozen=True)
class Complete:
    """A checkpoint that can be read."""

    directory: Path
    progress: Progress
    config: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """Returns the folder's name."""
    return f"step-{step:08d}"


def step_of(directory: Path) -> int:
    """Returns how many steps were made before a checkpoint.

    >>> step_of(Path("run/checkpoints/step-00000120"))
    120
    """
    return int(directory.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns those that were written to their end, the newest first. None of them is read."""
    found = (path for path in listed(folder) if _NAME.fullmatch(path.name) and (path / PROGRESS_FILE).is_file())
    return sorted(found, reverse=True)


def newest_checkpoint(folder: Path) -> Complete | None:
    """Returns the newest; None: there is none.

    Raises:
        CheckpointError: As `read_newest`.
    """
    found = complete_checkpoints(folder)
    return read_newest(found[0]) if found else None


def read_newest(directory: Path) -> Complete:
    """Returns what the newest checkpoint says of itself.

    Raises:
        CheckpointError: As `read_progress`; names the next older.
    """
    try:
        return read_progress(directory)
    except CheckpointError as error:
        raise type(error)(f"{error}; {next_older(directory)}") from error


def read_progress(directory: Path) -> Complete:
    """Returns what a complete checkpoint says of itself.

    Raises:
        CheckpointError: It cannot be read.
        DamagedCheckpoint: It is none, or of another format.
    """
    path = directory / PROGRESS_FILE
    try:
        said = json.loads(path.read_text())
        if said["format"] != FORMAT:
            raise DamagedCheckpoint(f"{path} has format {said['format']}; this version of Manta reads {FORMAT}")
        return Complete(directory, Progress(**said["progress"]), dict(said["config"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind = CheckpointError if isinstance(error, OSError) else DamagedCheckpoint  # storage may be back soon
        raise kind(f"{directory} is no complete checkpoint of a training run: {error!r}") from error


def newest_in(folder: Path, but: int | None = None) -> str:
    """Says what there is to go on from; for errors, so it raises none.

    Args:
        but: The number of steps after which the weights were no good: a run that begins with those fails at once.
    """
    try:
        found = complete_checkpoints(folder)
        if found and step_of(found[0]) == but:
            return f"its weights are those of {found[0].name}, the newest complete checkpoint; {next_older(found[0])}"
    except OSError as error:
        return f"what there is to go on from cannot be read ({error})"
    return f"the newest complete checkpoint is {found[0].name}" if found else "there is no checkpoint yet"


def next_older(directory: Path) -> str:
    """Says what there is in place of a checkpoint that is no good."""
    older = [path.name for path in complete_checkpoints(directory.parent) if path.name < directory.name]
    if not older:
        return f"there is no older one: once {directory.name} is moved away, the run begins anew"
    return f"the next older is {older[0]}, which is used once {directory.name} is moved away"


def listed(folder: Path) -> Iterator[Path]:
    """Yields what is in a folder; nothing, if there is no folder."""
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return
