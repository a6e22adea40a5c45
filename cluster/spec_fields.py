"""What one field of the service file may hold: the same rule validates it, words its error and documents it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

RULE_BROKEN = "rule_broken"  # the pydantic error type that carries a rule's words

Auto = Literal["auto"]


@dataclass(frozen=True)
class Allowed:
    """Words for what a field may hold, written so that they follow "allowed: "."""

    words: str

    def refuse(self) -> PydanticCustomError:
        """The pydantic error for a value that is not allowed."""
        return PydanticCustomError(RULE_BROKEN, "allowed: {words}", {"words": self.words})


@dataclass(frozen=True)
class Rule(Allowed):
    """Words, and the test they describe. The value itself is kept as given: nothing is converted silently."""

    accepts: Callable[[object], bool]

    def check(self, value: object) -> object:
        """Returns `value` if it is allowed.

        Raises:
            PydanticCustomError: it is not.
        """
        if not self.accepts(value):
            raise self.refuse()
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Replaces pydantic's own (converting) validation of the annotated type by this rule."""
        return core_schema.no_info_plain_validator_function(self.check)


@dataclass(frozen=True)
class NotYet:
    """Marks a field that this version does not honour: any value but the default is refused, with this advice."""

    advice: str


def is_whole(value: object, least: int, most: float = math.inf) -> TypeGuard[int]:
    """True for an int (a bool is none) between `least` and `most`, both included."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite int or float that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def is_text(value: object) -> TypeGuard[str]:
    """True for a string with something in it."""
    return isinstance(value, str) and bool(value.strip())


def or_auto(test: Callable[[object], bool]) -> Callable[[object], bool]:
    """The same test, and also `auto`."""
    return lambda value: value == "auto" or test(value)


def or_null(test: Callable[[object], bool]) -> Callable[[object], bool]:
    """The same test, and also null."""
    return lambda value: value is None or test(value)


def one_of(*choices: str) -> Rule:
    """The rule of a field that holds one of a few words."""
    return Rule(" | ".join(choices), lambda value: isinstance(value, str) and value in choices)


def _is_count(value: object) -> bool:
    return is_whole(value, 1)


def _is_gpu_share(value: object) -> bool:
    return is_number(value) and (value <= 1 or float(value).is_integer())


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(is_text(part) for item in value.items() for part in item)


def _is_route(value: object) -> bool:
    return isinstance(value, str) and (value == "/" or re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value) is not None)


def _is_service_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value) is not None


def _digits_to_int(value: object) -> object:
    """Mapping keys that travelled through JSON (`serve deploy`) arrive as text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


ServiceName = Annotated[
    str, Rule("at most 63 of a-z, 0-9 and -, with a letter or digit at both ends", _is_service_name)
]
Text = Annotated[str, Rule("text that is not empty", is_text)]
TextOrNull = Annotated[str | None, Rule("text, or null", or_null(is_text))]
Host = Annotated[
    str, Rule("a host name or address", lambda value: is_text(value) and re.search(r"[\s/]", value) is None)
]
Route = Annotated[str, Rule("/ or a path such as /mixtral", _is_route)]
Port = Annotated[int, Rule("a whole number from 1 to 65535", lambda value: is_whole(value, 1, 65535))]
PortOrNull = Annotated[
    int | None, Rule("null or a whole number from 1 to 65535", or_null(lambda value: is_whole(value, 1, 65535)))
]
Count = Annotated[int, Rule("a whole number of at least 1", _is_count)]
CountOrZero = Annotated[int, Rule("a whole number of at least 0", lambda value: is_whole(value, 0))]
AutoCount = Annotated[int | Auto, Rule("auto or a whole number of at least 1", or_auto(_is_count))]
Window = Annotated[
    int | Auto | None,
    Rule("auto, null (full attention) or a whole number of at least 1", or_auto(or_null(_is_count))),
]
AutoBool = Annotated[bool | Auto, Rule("auto | true | false", or_auto(lambda value: isinstance(value, bool)))]
NumCpus = Annotated[float | Auto, Rule("auto or a number of at least 0", or_auto(is_number))]
NumGpus = Annotated[float, Rule("0, a fraction of one GPU, or a whole number of GPUs", _is_gpu_share)]
Seconds = Annotated[float, Rule("a number of seconds above 0", lambda value: is_number(value) and value > 0)]
Share = Annotated[float, Rule("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)]
Labels = Annotated[dict[str, str], Rule("a mapping of text to text", _is_labels)]
ExpertId = Annotated[
    int,
    Rule("an expert id: a whole number of at least 0", lambda value: is_whole(value, 0)),
    BeforeValidator(_digits_to_int),
]
