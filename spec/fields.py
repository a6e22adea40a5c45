"""The fields that several kinds of file have: a type, the rule that checks it, and the rule's words."""

import re
from typing import Annotated, Literal

from spec.rules import Rule, is_number, is_text, is_whole, or_auto, or_null

MAX_SECONDS = 100_000_000  # three years; clocks and sockets overflow somewhere above
MAX_COUNT = 2**31 - 1  # no host, model or request has more of anything, and libraries overflow above
MAX_CPUS = 4096  # of one process

Auto = Literal["auto"]


def _is_count(value: object) -> bool:
    return is_whole(value, 1, MAX_COUNT)


def _is_num_cpus(value: object) -> bool:
    return is_number(value) and value <= MAX_CPUS


def seconds_from(least: float) -> Rule:
    """The rule of a time that makes no sense below a least one."""
    words = f"a number of seconds from {least:g} to {MAX_SECONDS}"
    return Rule(words, lambda value: is_number(value) and least <= value <= MAX_SECONDS)


def _is_gpu_share(value: object) -> bool:
    return is_number(value) and value <= 1


def _is_seconds(value: object) -> bool:
    return is_number(value) and 0 < value <= MAX_SECONDS


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", value) is not None


Name = Annotated[str, Rule("at most 63 of a-z, 0-9 and -, with a letter or digit at both ends", _is_name)]
Text = Annotated[str, Rule("text that is not empty", is_text)]
TextOrNull = Annotated[str | None, Rule("text, or null", or_null(is_text))]
Count = Annotated[int, Rule(f"a whole number from 1 to {MAX_COUNT}", _is_count)]
CountOrZero = Annotated[int, Rule(f"a whole number from 0 to {MAX_COUNT}", lambda value: is_whole(value, 0, MAX_COUNT))]
CountOrNull = Annotated[int | None, Rule(f"null or a whole number from 1 to {MAX_COUNT}", or_null(_is_count))]
AutoCount = Annotated[int | Auto, Rule(f"auto or a whole number from 1 to {MAX_COUNT}", or_auto(_is_count))]
NumCpus = Annotated[float | Auto, Rule(f"auto or a number from 0 to {MAX_CPUS}", or_auto(_is_num_cpus))]
NumGpus = Annotated[float, Rule("0, a fraction of one GPU, or 1: no process computes on more than one", _is_gpu_share)]
Seconds = Annotated[float, Rule(f"a number of seconds above 0, at most {MAX_SECONDS}", _is_seconds)]
