"""YAML out of a file, and what is wrong with it in words."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from spec.errors import Problem, SpecError


def read_yaml(path: Path) -> object:
    """What a YAML file holds, as plain data.

    Raises:
        SpecError: it cannot be read, is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem("", f"cannot be read: {error}")], str(path)) from error
    except yaml.YAMLError as error:
        raise SpecError([Problem("", _problem(error))], str(path)) from error


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key given twice is an error: PyYAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{key.value}` is given twice; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"is not valid YAML: {error}"
    mark = error.problem_mark
    context = f" {error.context}," if error.context else ""
    return f"is not valid YAML: line {mark.line + 1}, column {mark.column + 1}:{context} {error.problem}."
