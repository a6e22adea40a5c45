"""Turns what a user names on the command line (a directory, `demo`, a service file) into a service specification."""

from collections.abc import Mapping
from pathlib import Path

from cluster.spec import DEMO, SUBJECT, Problem, ServiceSpec, SpecError, load_spec, spec_for_model
from spec.paths import expanded

YAML_ENDINGS = (".yaml", ".yml")


def spec_of(target: str, overrides: Mapping[str, object], *, check_files: bool, allow_yaml: bool = True) -> ServiceSpec:
    """The service that `target` names.

    Args:
        target: A model directory, `demo`, or a service file.
        overrides: Values given on the command line, by dotted field path; they win over a file's.
        check_files: Whether the files it names must exist on this machine (not so when they are on a cluster's hosts).
        allow_yaml: Whether a service file will do.

    Raises:
        SpecError: there is no such thing, or it cannot be served.
    """
    path = expanded(target)
    if path.is_file() or path.suffix in YAML_ENDINGS:
        if not allow_yaml:
            raise SpecError([Problem("", "is a file; allowed: a model directory, or demo.")], target)
        if path.suffix not in YAML_ENDINGS:
            remedy = "give the directory that holds config.json and the .safetensors files, demo, or a .yaml file."
            raise SpecError([Problem("", f"is a file, but no service file: {remedy}")], target)
        spec = load_spec(path, overrides)
    else:
        spec = spec_for_model(target, overrides)
    if check_files:
        _check_files(spec)
    return spec


def _check_files(spec: ServiceSpec) -> None:
    problems: list[Problem] = []
    if not spec.model.directory.is_dir():
        what = "the bundled model is not installed" if spec.model.path == DEMO else "there is no such directory here"
        remedy = "give a directory with config.json and .safetensors files (Manta downloads nothing), or demo."
        problems.append(Problem("model.path", f"{spec.model.directory} was given: {what}; {remedy}"))
    if spec.api.keys_file is not None and not Path(spec.api.keys_file).is_file():
        remedy = "make it, with one API key a line, or leave it out to serve this machine only."
        problems.append(Problem("api.keys_file", f"{spec.api.keys_file} was given: there is no such file; {remedy}"))
    if problems:
        raise SpecError(problems, subject=SUBJECT)
