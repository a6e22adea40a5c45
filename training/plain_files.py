"""JSON files that Manta writes and reads back: of bounded size, and checked against a type before anything uses them.

Whoever can write into a run's folder decides what they say: a folder from elsewhere is input like any other.
"""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class NotPlain(ValueError):
    """A file is too large, none, no JSON, or not of the type that was expected; says where."""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Returns what a file holds.

    Args:
        max_bytes: More than Manta itself would ever write.

    Raises:
        OSError: It cannot be read.
        NotPlain: It is larger, or no file.
    """
    if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
        raise NotPlain(f"{path.name} is a folder, a pipe or a device, and no file")
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise NotPlain(f"{path.name} has more than {max_bytes} bytes, which Manta never writes")
    return text


def parse_plain(text: str | bytes, kind: TypeAdapter[T], name: str) -> T:
    """Returns what JSON says; numbers are not read from strings, nor truth from numbers.

    Args:
        kind: What it must say.
        name: Of its file, for errors.

    Raises:
        NotPlain: It says something else, or is no JSON.
    """
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise NotPlain(f"{name}: {place + ': ' if place else ''}{first['msg']}") from error
