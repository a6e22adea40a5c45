"""Reads a service file: YAML (or a dictionary, or a model's path) in, a checked `ServiceSpec` out.

spec = load_spec("service.yaml")
for shard in shards(spec, num_experts=8, num_cpus=2): ...
"""

from pathlib import Path

from cluster.spec_checks import problems_in
from cluster.spec_schema import (
    DEMO,
    SUBJECT,
    ApiSpec,
    AttentionSpec,
    AutoscalingSpec,
    ExpertsSpec,
    LimitsSpec,
    ModelSpec,
    RouterSpec,
    ServiceSpec,
)
from cluster.spec_shards import ShardPlan, cpu_default_shards, shards
from spec.errors import Problem, SpecError
from spec.reading import Overrides, Schema
from spec.replicas import Replicas

__all__ = [
    "DEMO",
    "SUBJECT",
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

SERVICE = Schema(ServiceSpec, subject=SUBJECT, smallest="model: {path: …}", checks=problems_in)


def load_spec(path: str | Path, overrides: Overrides | None = None) -> ServiceSpec:
    """Reads a service file.

    Args:
        path: The YAML file. Relative paths in it start at its folder.
        overrides: Values that win over the file's, by dotted field path.

    Raises:
        SpecError: the file cannot be read, is not YAML, or does not describe a service that can run.
    """
    return SERVICE.load(path, overrides)


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
    return SERVICE.check(data, overrides, base, source)
