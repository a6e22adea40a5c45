"""What is kept or said across versions of Manta: plain data with its format's number; never pickled.

A package may be replaced while a service runs: its controller is then started anew by the new code, over what the old
one has stored, and among parts that still run the old one. Whoever reads something of a format that it does not know
says so, and touches nothing.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

# Of what is stored, or asked for by a command. Raised when something is written that a Manta of before would
# misunderstand. A new field whose default means what was done before needs no other number.
FORMAT = 1
OLDEST_FORMAT = 1  # that this Manta can read
# Of what the controller and its members say to each other. A number of its own: members that run the old package must
# follow the routing tables of a new controller, whatever that stores.
MESSAGE_FORMAT = 1
OLDEST_MESSAGE_FORMAT = 1


@dataclass(frozen=True)
class Formats:
    """Which formats there are of one kind of data: written in the `newest`, read from the `oldest` on."""

    newest: int
    oldest: int

    def __str__(self) -> str:
        return f"format {self.newest}" if self.oldest == self.newest else f"formats {self.oldest} to {self.newest}"


STORED = Formats(FORMAT, OLDEST_FORMAT)
SAID = Formats(MESSAGE_FORMAT, OLDEST_MESSAGE_FORMAT)


def _version() -> str:
    try:
        return metadata.version("manta-moe")
    except metadata.PackageNotFoundError:
        return "unknown"


MANTA = _version()


class FormatError(ValueError):
    """Something stored or said by another Manta that this one cannot read; says by which, and what to do."""


def pack(value: object, formats: Formats = STORED) -> dict[str, Any]:
    """Returns a dataclass as JSON types, with the format's number and the Manta that wrote it."""
    return {"format": formats.newest, "manta": MANTA, "data": _adapter(type(value)).dump_python(value, mode="json")}


def unpack(kind: type[T], record: object, what: str, exact: bool = False, formats: Formats = STORED) -> T:
    """Returns what was packed. Fields that are missing have their defaults.

    Args:
        what: What it is, for errors.
        exact: Whether a field that is not known here makes it unreadable: it may say what must not be ignored.
        formats: What it was packed with.

    Raises:
        FormatError: It is of another format, or no such thing.
    """
    data, manta = _data_of(record, what, formats)
    try:
        value = _adapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise FormatError(f"{what}, written by Manta {manta}: {field}: {first['msg']}{_remedy(manta)}") from None
    except ValueError as error:  # a rule of a file's section
        raise FormatError(f"{what}, written by Manta {manta}: {error}{_remedy(manta)}") from None
    if exact and (unknown := _unknown(data, _adapter(kind).dump_python(value, mode="json"))):
        raise FormatError(f"{what}, written by Manta {manta}: {unknown} is not known to Manta {MANTA}{_remedy(manta)}")
    return value


def _data_of(record: object, what: str, formats: Formats) -> tuple[object, str]:
    if not isinstance(record, Mapping) or not isinstance(record.get("format"), int):  # pyright: ignore[reportUnknownMemberType]
        raise FormatError(f"{what} was written by a Manta of before versioned formats{_remedy('')}")
    manta, number = str(record.get("manta", "unknown")), int(record["format"])
    if not formats.oldest <= number <= formats.newest:
        raise FormatError(
            f"{what} has format {number}, of Manta {manta}; Manta {MANTA} reads {formats}{_remedy(manta)}"
        )
    return record.get("data"), manta


def _remedy(manta: str) -> str:
    return (
        f". Nothing was changed: what runs goes on. Install Manta {manta or 'as it was'} again on every host and end "
        "the controller's process (Ray starts it again), or stop the service with `manta down`, then `manta serve`"
    )


def _unknown(given: object, known: object) -> str:
    """Returns the path of a field that is given and not known; empty: there is none."""
    if not isinstance(given, Mapping):
        return ""
    for name, value in given.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(known, Mapping) or name not in known:
            return str(name)  # pyright: ignore[reportUnknownArgumentType]
        if inner := _unknown(value, known[name]):
            return f"{name}.{inner}"
    return ""


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
