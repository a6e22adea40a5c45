"""What is wrong with a YAML file, in words: the field, what was given, what is allowed, what to do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from spec.rules import RULE_BROKEN
from spec.section import Section, section_in


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `field` is a dotted path, such as `api.port`."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


class SpecError(ValueError):
    """A file (or the arguments that stand for one) that does not say what it should.

    Args:
        problems: Everything found.
        source: Where it was found, such as a file; empty if nothing has a name.
        subject: What the file describes: named above several problems that have no source.
    """

    def __init__(self, problems: Iterable[Problem], source: str = "", subject: str = "the file") -> None:
        self.problems = tuple(problems)
        self.source = source
        self.subject = subject
        super().__init__(self.problems, source, subject)  # all in args: Ray pickles errors between processes

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if len(lines) == 1:
            return f"{self.source}: {lines[0]}" if self.source else lines[0]
        head = f"{self.source or self.subject}: {len(lines)} problems"
        return "\n".join([head, *(f"  {line}" for line in lines)])


def problems_of(error: ValidationError, root: type[Section]) -> Iterator[Problem]:
    """Pydantic's findings about a `root`, reworded."""
    for details in error.errors(include_url=False):
        path = [part for part in details["loc"] if part != "[key]"]
        yield Problem(".".join(map(str, path)), _reword(details, path, root))


def show(value: object) -> str:
    """A value as the user would write it, cut to a readable length."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reword(details: ErrorDetails, path: list[int | str], root: type[Section]) -> str:
    given = show(details["input"])
    match details["type"]:
        case "extra_forbidden" | "invalid_key":
            return _unknown_field(str(path[-1]), list(_section_at(root, path[:-1]).model_fields))
        case "missing":
            return f"is missing, and has no default. {_meaning(root, path)}".rstrip()
        case "model_type" | "model_attributes_type":
            fields = ", ".join(_section_at(root, path).model_fields)
            return f"{given} was given; allowed: a section with some of the fields {fields}."
        case "dict_type":
            return f"{given} was given; allowed: a mapping."
        case type_ if type_ == RULE_BROKEN:
            words = str(details.get("ctx", {})["words"])
            return f"{given} was given; allowed: {words}.{_guess(details['input'], words)}{_default(root, path)}"
        case _:
            return f"{given} was given: {details['msg']}."


def _unknown_field(name: str, known: list[str]) -> str:
    given = name.lower().replace("-", "_")
    close = get_close_matches(given, known, n=1) or [field for field in known if given in field.split("_")]
    guess = f"did you mean {close[0]}? " if close else ""
    return f"is not a field; {guess}Fields here: {', '.join(known)}."


def _guess(given: object, words: str) -> str:
    if isinstance(given, str):
        if given.strip().isdigit() and "whole number" in words:
            return " Write it without quotes."
        close = get_close_matches(given.lower(), words.split(" | "), n=1)
        return f" Did you mean {close[0]}?" if close and close[0] != given else ""
    return ""


def _default(root: type[Section], path: list[int | str]) -> str:
    field = _field_at(root, path)
    if field is None or field.default is PydanticUndefined:
        return ""
    plain = field.default is None or isinstance(field.default, bool | int | float | str)
    default = field.default if isinstance(field.default, str) else show(field.default)
    return f" Leave it out for the default ({default})." if plain else " Leave it out for the default."


def _meaning(root: type[Section], path: list[int | str]) -> str:
    field = _field_at(root, path)
    section = section_in(field.annotation) if field else None
    return (field.description if field else None) or (section.__doc__ if section else None) or ""


def _field_at(root: type[Section], path: list[int | str]) -> FieldInfo | None:
    return _section_at(root, path[:-1]).model_fields.get(str(path[-1])) if path else None


def _section_at(root: type[Section], path: list[int | str]) -> type[Section]:
    """The class of the section at `path`. Parts that name no field (an expert id) stay where they are."""
    section = root
    for part in path:
        field = section.model_fields.get(str(part))
        section = (section_in(field.annotation) or section) if field else section
    return section
