"""Reads a service file: YAML (or a dictionary, or a model's path) in, a checked `ServiceSpec` out.

spec = load_spec("service.yaml")
for shard in shards(spec, num_experts=8, num_cpus=2): ...
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cluster.spec_checks import problems_in
from cluster.spec_errors import Problem, SpecError, problems_of, show
from cluster.spec_schema import (
    DEMO,
    ApiSpec,
    AttentionSpec,
    AutoscalingSpec,
    ExpertsSpec,
    LimitsSpec,
    ModelSpec,
    Replicas,
    RouterSpec,
    ServiceSpec,
)
from cluster.spec_shards import ShardPlan, cpu_default_shards, shards

__all__ = [
    "DEMO",
    "ApiSpec",
    "AttentionSpec",
    "AutoscalingSpec",
    "ExpertsSpec",
    "LimitsSpec",
    "ModelSpec",
    "Problem",
    "Replicas",
    "RouterSpec",
    "ServiceSpec",
    "ShardPlan",
    "SpecError",
    "cpu_default_shards",
    "load_spec",
    "shards",
    "spec_for_model",
    "spec_from_dict",
]

Overrides = Mapping[str, object]  # dotted field paths to values, such as {"api.port": 9000}


def load_spec(path: str | Path, overrides: Overrides | None = None) -> ServiceSpec:
    """Reads a service file.

    Args:
        path: The YAML file. Relative paths in it start at its folder.
        overrides: Values that win over the file's, by dotted field path.

    Raises:
        SpecError: the file cannot be read, is not YAML, or does not describe a service that can run.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem("", f"cannot be read: {error}")], str(path)) from error
    except yaml.YAMLError as error:
        raise SpecError([Problem("", _yaml_problem(error))], str(path)) from error
    return spec_from_dict(data, overrides, base=path.absolute().parent, source=str(path))


def spec_for_model(model: str | Path, overrides: Overrides | None = None) -> ServiceSpec:
    """The service that serves one model with every default but `overrides`; `demo` is the bundled model.

    Raises:
        SpecError: an override is not allowed.
    """
    return spec_from_dict({"model": {"path": str(model)}}, overrides, base=Path.cwd())


def spec_from_dict(
    data: object, overrides: Overrides | None = None, base: Path | None = None, source: str = ""
) -> ServiceSpec:
    """Checks a service given as plain data (what YAML or JSON gives).

    Args:
        data: Sections and fields, as in a service file.
        overrides: Values that win over those of `data`, by dotted field path.
        base: The folder at which relative paths start; None leaves them as they are.
        source: What to name in errors, such as a file.

    Raises:
        SpecError: it does not describe a service that can run; lists every problem found.
    """
    if not isinstance(data, Mapping):
        what = "is empty" if data is None else f"{show(data)} was given"
        raise SpecError([Problem("", f"{what}; allowed: sections and fields, at least model: {{path: …}}.")], source)
    merged = _merge(data, overrides or {})
    try:
        spec = ServiceSpec.model_validate(_absolute(merged, base) if base else merged)
    except ValidationError as error:
        raise SpecError(problems_of(error, ServiceSpec), source) from error
    problems = tuple(problems_in(spec))
    if problems:
        raise SpecError(problems, source)
    return spec


def _merge(data: Mapping[Any, Any], overrides: Overrides) -> dict[Any, Any]:
    """A copy of `data` without empty sections (`limits:` and nothing below it), and with the overrides set.

    Raises:
        SpecError: an override names a field of something that has none, such as `router.replicas.max` of a number.
    """
    merged = {key: value for key, value in data.items() if not (value is None and _is_section(key))}
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


def _is_section(name: object) -> bool:
    field = ServiceSpec.model_fields.get(str(name))
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _absolute(data: dict[Any, Any], base: Path) -> dict[Any, Any]:
    """The same data with relative file names made absolute from `base`."""
    for section, field, keep in (("model", "path", (DEMO, "")), ("api", "keys_file", ("",))):
        inner = data.get(section)
        value = inner.get(field) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(value, str) and value.strip() not in keep:
            data[section] = {**inner, field: str(base / Path(value).expanduser())}
    return data


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


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"is not valid YAML: {error}"
    mark = error.problem_mark
    context = f" {error.context}," if error.context else ""
    return f"is not valid YAML: line {mark.line + 1}, column {mark.column + 1}:{context} {error.problem}."
