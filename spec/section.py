"""Sections: a file is one, and so is each part of it."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What every section shares: it cannot change once read, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def is_section(annotation: Any) -> bool:
    """Whether a field of this type is a section itself, not something that may hold one."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def section_in(annotation: Any) -> type[Section] | None:
    """The section inside an annotation such as `dict[int, ShardOverride]` or `Replicas | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)
