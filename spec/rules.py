"""What one field of a YAML file may hold: the same rule validates it, words its error and documents it."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

RULE_BROKEN = "rule_broken"  # the pydantic error type that carries a rule's words


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


def is_whole(value: object, least: int, most: float = math.inf) -> TypeGuard[int]:
    """True for an int (a bool is none) between `least` and `most`, both included."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> TypeGuard[float]:
    """True for an int or float that is not negative, and no more than a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


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
