"""Names of files: relative ones start at the folder of the YAML file that has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from spec.section import Section, section_in


@dataclass(frozen=True)
class FileName:
    """Marks a field that names a file or a folder.

    Args:
        keep: Words that are no file names.
    """

    keep: tuple[str, ...] = ()

    def absolute(self, value: object, base: Path) -> object:
        """The file name made absolute from `base`; what is none, such as empty text or a URL, as it is."""
        if not isinstance(value, str) or value.strip() in ("", *self.keep) or "://" in value:
            return value
        return str(base / expanded(value))


def expanded(name: str) -> Path:
    """The path with `~` and `~user` followed; as it is where there is no such user, as in shells."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def absolute(data: Mapping[Any, Any], section: type[Section], base: Path) -> dict[Any, Any]:
    """The data of a section, not yet checked, with every file name in it made absolute from `base`."""
    fields = section.model_fields
    return {name: _absolute(value, fields.get(str(name)), base) for name, value in data.items()}


def _absolute(value: Any, field: FieldInfo | None, base: Path) -> Any:
    if field is None:  # an error, which the schema reports
        return value
    mark = next((mark for mark in field.metadata if isinstance(mark, FileName)), None)
    if mark is not None:
        return mark.absolute(value, base)
    section = section_in(field.annotation)
    if section is not None and isinstance(value, Mapping):
        return absolute(value, section, base)
    if section is not None and isinstance(value, list | tuple):
        return [absolute(item, section, base) if isinstance(item, Mapping) else item for item in value]
    return value
