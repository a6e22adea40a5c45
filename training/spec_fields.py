"""The fields that only a training file has, most of them numbers."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator

from model.config import MAX_EXPERTS, MAX_LAYERS
from model.config_fields import MAX_INTEGER
from spec.paths import FileName
from spec.rules import Rule, is_number, is_text, is_whole, or_null
from training.cursor import MAX_SEED
from training.progress import MAX_STEPS

# PyYAML follows YAML 1.1, in which 1e-3 and 1.0e3 are text: a number in it has a point, and a sign in its exponent.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _exponent_to_float(value: object) -> object:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


AS_WRITTEN = BeforeValidator(_exponent_to_float)
MIN_EPS = 1e-30  # in float32, 0 is what is left of a much smaller one, and a weight without a gradient becomes 0 / 0


def _number(words: str, test: Callable[[float], bool]) -> Rule:
    return Rule(words, lambda value: is_number(value) and test(value))


def _up_to(most: int, least: int = 1) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda value: is_whole(value, least, most))


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0


def _is_path(value: object) -> bool:
    return is_text(value) and "://" not in value


def _is_sources(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0


Bool = Annotated[bool, Rule("true | false", lambda value: isinstance(value, bool))]
# Sizes are those that a config.json may say: what is trained is to be served.
Size = Annotated[int, _up_to(MAX_INTEGER)]
NumLayers = Annotated[int, _up_to(MAX_LAYERS)]
NumExperts = Annotated[int, _up_to(MAX_EXPERTS)]
SizeOrNull = Annotated[
    int | None,
    Rule(f"null or a whole number from 1 to {MAX_INTEGER}", or_null(lambda value: is_whole(value, 1, MAX_INTEGER))),
]
NumSteps = Annotated[int, _up_to(MAX_STEPS)]
Seed = Annotated[int, _up_to(MAX_SEED, least=0)]
Eps = Annotated[float, _number(f"a number of at least {MIN_EPS}", lambda value: value >= MIN_EPS), AS_WRITTEN]
Positive = Annotated[float, Rule("a number above 0", _is_positive), AS_WRITTEN]
PositiveOrNull = Annotated[float | None, Rule("null or a number above 0", or_null(_is_positive)), AS_WRITTEN]
NotNegative = Annotated[float, Rule("a number of at least 0", is_number), AS_WRITTEN]
Decay = Annotated[float, _number("a number of at least 0 and below 1", lambda value: value < 1), AS_WRITTEN]
UpToHalf = Annotated[float, _number("a number from 0 to 0.5", lambda value: value <= 0.5), AS_WRITTEN]
PathText = Annotated[str, Rule("a path (mount what has a URL)", _is_path), FileName()]
PathOrNull = Annotated[str | None, Rule("null or a path (mount what has a URL)", or_null(_is_path)), FileName()]
SOURCES = Rule("a list of at least one section", _is_sources)
