"""Typed access to the fields of a JSON configuration file, with errors that name file, field, value and remedy."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, cast

from model.errors import ConfigError


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
            values: object = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(str(path), f"the file cannot be read ({error}).", "Check its permissions.") from error
        except ValueError as error:
            remedy = "Copy the file again from where the model came from."
            raise ConfigError(str(path), f"the file is not valid JSON ({error}).", remedy) from error
        if not isinstance(values, dict):
            raise ConfigError(str(path), "the file does not hold a JSON object.", "Give a Mixtral model directory.")
        return cls(path, cast("dict[str, object]", values))

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

    def integer(self, name: str, *, default: int | None = None, minimum: int = 1) -> int:
        """An integer that is at least `minimum`. Raises ConfigError when it is absent and has no default."""
        value = self.optional_integer(name, minimum=minimum)
        if value is not None:
            return value
        if default is None:
            raise self.refuse(name, f"an integer of at least {minimum}")
        return default

    def optional_integer(self, name: str, *, minimum: int = 1) -> int | None:
        """An integer that is at least `minimum`, or None when it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.refuse(name, f"an integer of at least {minimum}")
        return value

    def positive_number(self, name: str, *, default: float) -> float:
        """A finite number above zero."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refuse(name, "a finite number above 0")
        return float(value)

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
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise self.refuse(name, "a token id, a list of token ids, or null")
        return tuple(cast("list[int]", ids))

    def choice(self, name: str, allowed: Sequence[str], *, default: str) -> str:
        """One of the words `allowed`."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(name, " or ".join(f'"{word}"' for word in allowed))
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

    def refuse_others(self, *known: str) -> None:
        """Raises ConfigError when there is a field that is not `known`: it may change what the model means."""
        for name in self._values:
            if name not in known:
                raise self.refuse(name, f"absent; fields here: {', '.join(known)}")

    def refuse(self, name: str, allowed: str, remedy: str = "") -> ConfigError:
        """The error to raise for field `name`: names the file, the field, its value and what is allowed."""
        field = f"{self._prefix}{name}"
        given = f"is {json.dumps(self._values[name])}" if name in self._values else "is missing"
        remedy = remedy or f"Correct it in {self.path.name}, or copy the file again from where the model came from."
        return ConfigError(str(self.path), f"{field} {given}, but must be {allowed}.", remedy)
