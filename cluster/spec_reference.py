"""Writes docs/service-yaml.md from the schema: `python -m cluster.spec_reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cluster.spec_checks import advice_of
from cluster.spec_fields import Allowed
from cluster.spec_schema import Replicas, ServiceSpec, ShardOverride

TARGET = Path(__file__).parents[1] / "docs" / "service-yaml.md"

HEAD = """# The service file

<!-- Generated from cluster/spec_schema.py by `make docs`; a test keeps it up to date. -->

One YAML file describes one service; `manta serve FILE` reads it. Every field but `model.path` has a default, so the
smallest file is `model: {path: demo}`; `deploy/service.yaml` is a commented example. An unknown field, a value that is
not allowed and a key given twice are errors that name the field. A field marked **not yet** is refused unless it has
its default: nothing is ignored.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    own = [(name, field) for name, field in ServiceSpec.model_fields.items() if _section_of(field) is None]
    sections = [(name, _section_of(field)) for name, field in ServiceSpec.model_fields.items()]
    parts = [HEAD, *_table(own)]
    for name, section in [*sections, ("experts.overrides.<expert id>", ShardOverride)]:
        if section is not None:
            parts += [f"\n## `{name}`\n", f"{section.__doc__}\n", *_table(section.model_fields.items())]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Writes the page."""
    TARGET.write_text(reference(), encoding="utf-8")


def _table(fields: Any) -> list[str]:
    rows = [f"| `{name}` | {_allowed(field)} | {_default(field)} | {_meaning(field)} |" for name, field in fields]
    return ["| field | allowed | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _allowed(field: FieldInfo) -> str:
    words = next((mark.words for mark in field.metadata if isinstance(mark, Allowed)), None)
    if words is None:  # the rule sits inside a union or a mapping
        words = next((mark.words for mark in _inner_marks(field.annotation)), "a mapping")
    return words.replace("|", "\\|")


def _inner_marks(annotation: Any) -> Iterator[Allowed]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
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
    return "`null`" if value is None else f"`{value}`"


def _meaning(field: FieldInfo) -> str:
    advice = advice_of(field)
    return (field.description or "") + (f" **Not yet**: {advice}." if advice else "")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    options = (field.annotation, *get_args(field.annotation))
    return next((part for part in options if isinstance(part, type) and issubclass(part, BaseModel)), None)


if __name__ == "__main__":
    main()
