"""A YAML file, or the same as plain data, in; checked sections out.

SERVICE = Schema(ServiceSpec, subject="the service", smallest="model: {path: …}", checks=problems_in)
spec = SERVICE.load("service.yaml", {"api.port": 9000})
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from spec.errors import Problem, SpecError, problems_of, show
from spec.loader import read_yaml
from spec.not_yet import not_honoured
from spec.paths import absolute
from spec.section import Section, is_section

# What is no UTF-8 in the name of a file reaches Python as halves of surrogate pairs.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
Overrides = Mapping[str, object]  # dotted field paths to values, such as {"api.port": 9000}
Root = TypeVar("Root", bound=Section)


@dataclass(frozen=True)
class Schema(Generic[Root]):
    """One kind of file.

    Args:
        root: The section that a whole file is.
        subject: What such a file describes, in errors.
        smallest: The least that a file must say, in errors.
        checks: Finds everything wrong with a `root` whose fields are each well-formed.
    """

    root: type[Root]
    subject: str
    smallest: str
    checks: Callable[[Root], Iterable[Problem]]

    def load(self, path: str | Path, overrides: Overrides | None = None) -> Root:
        """Reads a file; relative paths in it start at its folder.

        Raises:
            SpecError: the file cannot be read, is not YAML, or is not of this kind.
        """
        path = Path(path)
        return self.check(read_yaml(path), overrides, base=path.absolute().parent, source=str(path))

    def check(
        self, data: object, overrides: Overrides | None = None, base: Path | None = None, source: str = ""
    ) -> Root:
        """Checks plain data (what YAML or JSON gives).

        Args:
            data: Sections and fields, as in a file.
            overrides: Values that win over those of `data`, by dotted field path.
            base: The folder at which relative paths start; None leaves them as they are.
            source: What to name in errors, such as a file.

        Raises:
            SpecError: it is not of this kind; lists every problem found.
        """
        if not isinstance(data, Mapping):
            what = "is empty" if data is None else f"{show(data)} was given"
            allowed = f"{what}; allowed: sections and fields, at least {self.smallest}."
            raise SpecError([Problem("", allowed)], source, self.subject)
        merged = merge(data, overrides or {}, self.root)
        unusable = tuple(_unusable_texts(merged))
        if unusable:
            raise SpecError(unusable, source, self.subject)
        try:
            spec = self.root.model_validate(absolute(merged, self.root, base) if base else merged)
        except ValidationError as error:
            raise SpecError(problems_of(error, self.root), source, self.subject) from error
        problems = (*not_honoured(spec), *self.checks(spec))
        if problems:
            raise SpecError(problems, source, self.subject)
        return spec


def merge(data: Mapping[Any, Any], overrides: Overrides, root: type[Section]) -> dict[Any, Any]:
    """A copy of `data` without empty sections (`limits:` and nothing below it), and with the overrides set.

    Raises:
        SpecError: an override names a field of something that has none, such as `router.replicas.max` of a number.
    """
    merged = {key: value for key, value in data.items() if not (value is None and _names_section(key, root))}
    for path, value in overrides.items():
        *sections, field = path.split(".")
        at = merged
        for depth, name in enumerate(sections, start=1):
            section = next((key for key in at if str(key) == name), name)  # an expert id is a number in YAML
            inner = at.get(section)
            if inner is not None and not isinstance(inner, Mapping):
                outer = ".".join(sections[:depth])
                raise SpecError([Problem(path, f"cannot be set: {outer} is {show(inner)}, which has no fields.")])
            at[section] = at = dict(inner or {})
        at[field] = value
    return merged


def _unusable_texts(value: object, path: str = "") -> Iterator[Problem]:
    """One problem for each text, keys included, that neither a file nor a message between processes can be named by."""
    if isinstance(value, str) and _UNUSABLE.search(value):
        yield Problem(path, f"{show(value)} was given; allowed: text in UTF-8 without a NUL.")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(key, str) and _UNUSABLE.search(key):
            yield Problem(path, f"{show(key)} is no name of a field; allowed: text in UTF-8 without a NUL.")
        else:
            yield from _unusable_texts(item, here)


def _names_section(name: object, root: type[Section]) -> bool:
    field = root.model_fields.get(str(name))
    return field is not None and is_section(field.annotation)
