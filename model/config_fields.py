"""Typed access to the fields of a JSON configuration file, with errors that name file, field, value and remedy."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, cast

from model.errors import ConfigError
from model.json_text import LINK_PROBLEM, LINK_REMEDY, MAX_BYTES, JsonError, parse_object, shortened

MAX_INTEGER = (1 << 31) - 1


class ConfigFields:
    """The fields of one JSON object. A field whose value is null counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, object], prefix: str = "") -> None:
        self.path = path
        self._values = values
        self._prefix = prefix

    @classmethod
    def read(cls, path: Path) -> Self:
        """Parse the file at `path`. Raises ConfigError when it cannot be read or is not a JSON object."""
        try:
            if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
                problem = "this is a folder, a pipe or a device, and no file."
                raise ConfigError(str(path), problem, "Put the file itself in its place.")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and path.is_symlink():
                raise ConfigError(str(path), LINK_PROBLEM, LINK_REMEDY) from error
            raise ConfigError(str(path), f"the file cannot be read ({error}).", "Check its permissions.") from error
        if len(data) > MAX_BYTES:
            problem = f"the file has more than {MAX_BYTES} bytes, which no configuration has."
            raise ConfigError(str(path), problem, "Copy the file again from where the model came from.")
        try:
            values = parse_object(data)
        except JsonError as error:
            raise ConfigError(str(path), error.problem, error.remedy) from error
        return cls(path, values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> object:
        """The field's raw value; None when it is absent or null."""
        return self._values.get(name)

    def section(self, name: str) -> "ConfigFields":
        """The object inside field `name`; an empty one when it is absent or null."""
        value = self.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.refuse(name, "an object or null")
        return ConfigFields(self.path, cast("dict[str, object]", value), f"{self._prefix}{name}.")

    @property
    def is_empty(self) -> bool:
        """Whether there is no field."""
        return not self._values

    def integer(self, name: str, *, default: int | None = None, maximum: int = MAX_INTEGER) -> int:
        """An integer from 1 to `maximum`. Raises ConfigError when it is absent and has no default."""
        value = self.optional_integer(name, maximum=maximum)
        if value is not None:
            return value
        if default is None:
            raise self.refuse(name, "an integer of at least 1")
        return default

    def optional_integer(self, name: str, *, maximum: int = MAX_INTEGER) -> int | None:
        """An integer from 1 to `maximum`, or None when it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(name, "an integer of at least 1")
        if value > maximum:
            raise self.refuse(name, f"an integer of at most {maximum}")
        return value

    def positive_number(self, name: str, *, default: float | None = None) -> float:
        """A finite number above zero. Raises ConfigError when it is absent and has no default."""
        value = self.optional_number(name)
        if value is None and default is not None:
            return default
        if not value:
            raise self.refuse(name, "a finite number above 0")
        return value

    def number(self, name: str, *, default: float) -> float:
        """A finite number that is not negative."""
        value = self.optional_number(name)
        return default if value is None else value

    def optional_number(self, name: str) -> float | None:
        """A finite number that is not negative, or None when it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.refuse(name, "a finite number, at least 0")
        try:
            return float(value)
        except OverflowError:
            raise self.refuse(name, "a finite number, at least 0") from None

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them, as a tuple; empty when the field is absent."""
        value = self.get(name)
        if value is None:
            return ()
        ids = cast("list[object]", value) if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
            raise self.refuse(name, "a token id, a list of token ids, or null")
        return tuple(cast("list[int]", ids))

    def choice(self, name: str, allowed: Sequence[str], *, default: str, remedy: str = "") -> str:
        """One of the words `allowed`."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(name, " or ".join(f'"{word}"' for word in allowed), remedy)
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of different names, at least one. Raises ConfigError when it is absent."""
        value = self.get(name)
        names = cast("list[object]", value) if isinstance(value, list) else []
        named = [one for one in names if isinstance(one, str) and one.strip()]
        if not names or len(set(named)) < len(names):
            raise self.refuse(name, "a list of different names, at least one")
        return tuple(named)

    def refuse_present(self, name: str, allowed: str) -> None:
        """Raises ConfigError unless the field is absent or null."""
        if self.get(name) is not None:
            raise self.refuse(name, allowed)

    def refuse_sections(self, allowed: str) -> None:
        """Raises ConfigError when a field holds an object."""
        for name, value in self._values.items():
            if isinstance(value, dict):
                raise self.refuse(name, allowed)

    def refuse_others(self, *known: str) -> None:
        """Raises ConfigError when there is a field that is not `known`: it may change what the model means."""
        for name in self._values:
            if name not in known:
                raise self.refuse(name, f"absent; fields here: {', '.join(known)}")

    def refuse(self, name: str, allowed: str, remedy: str = "") -> ConfigError:
        """The error to raise for field `name`: names the file, the field, its value and what is allowed."""
        field = f"{self._prefix}{shortened(name)}"
        given = f"is {shortened(json.dumps(self._values[name]))}" if name in self._values else "is missing"
        remedy = remedy or f"Correct it in {self.path.name}, or copy the file again from where the model came from."
        return ConfigError(str(self.path), f"{field} {given}, but must be {allowed}.", remedy)
