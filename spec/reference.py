"""A Markdown page that documents a kind of YAML file, made from its schema."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spec.errors import show
from spec.not_yet import advice_of
from spec.replicas import Replicas
from spec.rules import Allowed
from spec.section import Section, is_section, section_in


def page(head: str, root: type[Section], inner: Mapping[str, type[Section]]) -> str:
    """A whole page, as Markdown.

    Args:
        head: What comes before the first table.
        root: The section that a whole file is: its own fields first, then a chapter for each of its sections.
        inner: Chapters for the sections within sections, by the path that is their title.
    """
    own = [(name, field) for name, field in root.model_fields.items() if section_in(field.annotation) is None]
    sections = [(name, section_in(field.annotation)) for name, field in root.model_fields.items()]
    chapters = [*sections, *inner.items()]
    parts = [head, *_table(own)]
    for name, section in chapters:
        if section is not None:
            fields = section.model_fields.items()
            told = [
                (one, field) for one, field in fields if not (is_section(field.annotation) and f"{name}.{one}" in inner)
            ]
            parts += [f"\n## `{name}`\n", f"{section.__doc__}\n", *_table(told)]
    return "\n".join(parts) + "\n"


def _table(fields: Any) -> list[str]:
    rows = [f"| `{name}` | {_allowed(field)} | {_default(field)} | {_meaning(field)} |" for name, field in fields]
    return ["| field | allowed | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _allowed(field: FieldInfo) -> str:
    words = next((mark.words for mark in field.metadata if isinstance(mark, Allowed)), None)
    if words is None:  # the rule sits inside a union or a mapping
        words = next((mark.words for mark in _inner_marks(field.annotation)), "a mapping")
    return words.replace("|", "\\|")


def _inner_marks(annotation: Any) -> Iterator[Allowed]:
    if is_section(annotation):
        return
    if getattr(annotation, "__origin__", None) is dict:
        return
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Allowed):
            yield mark
    for part in get_args(annotation):
        yield from _inner_marks(part)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "none: it must be given"
    if isinstance(value, Replicas):
        return f"`{value.num}`"
    value = list(value) if isinstance(value, tuple) else value  # as YAML writes it
    return f"`{value if isinstance(value, str) else show(value)}`"


def _meaning(field: FieldInfo) -> str:
    advice = advice_of(field)
    return (field.description or "") + (f" **Not yet**: {advice}." if advice else "")
