"""Which checkpoints of a run there are, and what each says of itself. Nothing here reads tensors.

A damaged checkpoint is in nobody's way unless it is the one to go on from: they are listed by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from training.manifest import Tensors, read_manifest
from training.plain_files import NotPlain, parse_plain, read_bounded

CHECKPOINT_FOLDER = "checkpoints"  # in a run's folder
PROGRESS_FILE = "progress.json"
FORMAT = 2
PICKLED_FORMAT = 1
MAX_PROGRESS_BYTES = 1 << 20
PARTIAL = ".partial"
REMEDY = "make room there, or see to it that it can be written, and start the run again: it goes on"
PICKLED = (
    "was written by an earlier version of Manta, as pickles, which are not read: unpickling runs whatever code is in "
    "them. If you trust it, export it with the version that wrote it (`manta export`), and start a new run from that "
    "directory (`model.path`)"
)
_DIGITS = 8
MAX_STEPS = 10**_DIGITS - 1  # a longer name is no checkpoint's
_NAME = re.compile(rf"step-(\d{{{_DIGITS}}})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; says which, why, and what is left."""


class OtherRun(CheckpointError):
    """A checkpoint is of a run that this one cannot go on with; another try would end alike."""


class DamagedCheckpoint(CheckpointError):
    """What a checkpoint holds is not what was written, or is of another format; another try would end alike."""


class PickledCheckpoint(DamagedCheckpoint):
    """A checkpoint is of the format that was pickled, as are all older ones."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come.

    Args:
        step: Steps made.
        samples_seen: Training sequences seen: where the data goes on.
        data: Names what they were, and their order.
    """

    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    samples_seen: Annotated[int, Field(ge=0, lt=1 << 53)]
    data: str


@dataclass(frozen=True)
class Complete:
    """A checkpoint that can be read.

    Args:
        config: The model's sizes, as `model.config.MixtralConfig` has them.
        tensors: What it holds, and where.
    """

    directory: Path
    progress: Progress
    config: dict[str, Any]
    tensors: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class _Format:
    """What PROGRESS_FILE says in every format."""

    format: int


@dataclass(frozen=True)
class _Said:
    """What it says in this one."""

    progress: Progress
    config: dict[str, Any]


_FORMAT, _SAID = TypeAdapter(_Format), TypeAdapter(_Said)


def checkpoint_name(step: int) -> str:
    """Returns the folder's name."""
    return f"step-{step:0{_DIGITS}d}"


def is_checkpoint_name(name: str) -> bool:
    """Whether `checkpoint_name` gives a folder this name."""
    return _NAME.fullmatch(name) is not None


def step_of(directory: Path) -> int:
    """Returns how many steps were made before a checkpoint.

    >>> step_of(Path("run/checkpoints/step-00000120"))
    120
    """
    return int(directory.name.removeprefix("step-"))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns those that were written to their end, the newest first. None of them is read.

    Raises:
        CheckpointError: What is there cannot be listed.
    """
    found = (path for path in listed(folder) if is_checkpoint_name(path.name) and (path / PROGRESS_FILE).is_file())
    try:
        return sorted(found, reverse=True)
    except OSError as error:
        what = f"{folder} cannot be read: {error.strerror or error}"
        raise CheckpointError(f"{what}; see that it is a folder, and that this user can read it") from error


def newest_checkpoint(folder: Path) -> Complete | None:
    """Returns the newest; None: there is none.

    Raises:
        CheckpointError: As `complete_checkpoints` and `read_newest`.
    """
    found = complete_checkpoints(folder)
    return read_newest(found[0]) if found else None


def read_newest(directory: Path) -> Complete:
    """Returns what the newest checkpoint says of itself.

    Raises:
        CheckpointError: As `read_progress`; names the next older, which is of use unless both are pickled.
    """
    try:
        return read_progress(directory)
    except PickledCheckpoint:
        raise
    except CheckpointError as error:
        raise type(error)(f"{error}; {next_older(directory)}") from error


def read_progress(directory: Path) -> Complete:
    """Returns what a complete checkpoint says of itself.

    Raises:
        CheckpointError: It cannot be read.
        DamagedCheckpoint: It is none, or of another format.
        PickledCheckpoint: It is of the one that was pickled; says what to do.
    """
    try:
        text = read_bounded(directory / PROGRESS_FILE, MAX_PROGRESS_BYTES)
        found = parse_plain(text, _FORMAT, PROGRESS_FILE).format
        if found == PICKLED_FORMAT:
            raise PickledCheckpoint(f"{directory} {PICKLED}")
        if found != FORMAT:
            what = f"{directory / PROGRESS_FILE} has format {found}"
            raise DamagedCheckpoint(f"{what}; this version of Manta reads {FORMAT}")
        said = parse_plain(text, _SAID, PROGRESS_FILE)
        if checkpoint_name(said.progress.step) != directory.name:
            raise DamagedCheckpoint(f"{directory} says that it is of step {said.progress.step}; give it its name back")
        return Complete(directory, said.progress, said.config, read_manifest(directory))
    except (OSError, NotPlain) as error:
        lasting = isinstance(error, NotPlain | FileNotFoundError)  # storage may be back soon
        kind = DamagedCheckpoint if lasting else CheckpointError
        raise kind(f"{directory} is no complete checkpoint of a training run: {error}") from error


def newest_in(folder: Path, but: int | None = None) -> str:
    """Says what there is to go on from; for errors, so it raises none.

    Args:
        but: The number of steps after which the weights were no good: a run that begins with those fails at once.
    """
    try:
        found = complete_checkpoints(folder)
        if found and step_of(found[0]) == but:
            return f"its weights are those of {found[0].name}, the newest complete checkpoint; {next_older(found[0])}"
    except CheckpointError as error:
        return f"what there is to go on from: {error}"
    return f"the newest complete checkpoint is {found[0].name}" if found else "there is no checkpoint yet"


def next_older(directory: Path) -> str:
    """Says what there is in place of a checkpoint that is no good; for errors, so it raises none."""
    try:
        older = [path.name for path in complete_checkpoints(directory.parent) if path.name < directory.name]
    except CheckpointError as error:
        return f"what there is to go on from: {error}"
    if not older:
        return f"there is no older one: once {directory.name} is moved away, the run begins anew"
    return f"the next older is {older[0]}, which is used once {directory.name} is moved away"


def listed(folder: Path) -> Iterator[Path]:
    """Yields what is in a folder; nothing, if there is no folder."""
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return
