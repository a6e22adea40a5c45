"""Fields that are read and checked, but that this version does not honour: nothing is ignored."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from spec.errors import Problem, show
from spec.section import Section


@dataclass(frozen=True)
class NotYet:
    """Marks a field that this version does not honour: any value but the default is refused, with this advice."""

    advice: str


def advice_of(field: FieldInfo) -> str | None:
    """What to do instead of a field that is not honoured yet; None for a field that is."""
    return next((mark.advice for mark in field.metadata if isinstance(mark, NotYet)), None)


def not_honoured(section: Section, path: str = "") -> Iterator[Problem]:
    """One problem for each field, at any depth, that has been given and is not honoured yet."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        here = f"{path}.{name}" if path else name
        advice = advice_of(field)
        if advice is not None and value != field.get_default(call_default_factory=True):
            yield Problem(here, f"{show(value)} was given, which is not honoured yet in this version: {advice}.")
            continue
        for inner_path, inner in _sections_in(value, here):
            yield from not_honoured(inner, inner_path)


def _sections_in(value: object, path: str) -> Iterator[tuple[str, Section]]:
    """The sections that a field's value is or holds, each with its dotted path."""
    if isinstance(value, Section):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, item in items:
        if isinstance(item, Section):
            yield f"{path}.{key}", item
