"""Reads a training file: YAML (or a dictionary) in, a checked `TrainingSpec` out.

spec = load_training("training.yaml", {"schedule.steps": 10})
"""

from pathlib import Path

from spec.errors import Problem, SpecError
from spec.reading import Overrides, Schema
from spec.replicas import Replicas
from training.spec_checks import experts_problems, problems_in
from training.spec_schema import (
    CheckpointsSpec,
    ConfigSpec,
    DataSpec,
    LimitsSpec,
    LossesSpec,
    ModelSpec,
    OptimizerSpec,
    ParallelSpec,
    ScheduleSpec,
    SourceSpec,
    TrainingSpec,
)

__all__ = [
    "CheckpointsSpec",
    "ConfigSpec",
    "DataSpec",
    "LimitsSpec",
    "LossesSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ParallelSpec",
    "Problem",
    "Replicas",
    "ScheduleSpec",
    "SourceSpec",
    "SpecError",
    "TrainingSpec",
    "check_experts",
    "load_training",
    "training_from_dict",
]

SUBJECT = "the training run"  # what such a file describes, in errors
SMALLEST = "storage, model, data: {sources: …} and schedule: {steps: …, batch: …}"
TRAINING = Schema(TrainingSpec, subject=SUBJECT, smallest=SMALLEST, checks=problems_in)


def load_training(path: str | Path, overrides: Overrides | None = None) -> TrainingSpec:
    """Reads a training file.

    Args:
        path: The YAML file. Relative paths in it start at its folder.
        overrides: Values that win over the file's, by dotted field path.

    Raises:
        SpecError: the file cannot be read, is not YAML, or does not describe a run that can start.
    """
    return TRAINING.load(path, overrides)


def training_from_dict(
    data: object, overrides: Overrides | None = None, base: Path | None = None, source: str = ""
) -> TrainingSpec:
    """Checks a run given as plain data (what YAML or JSON gives).

    Args:
        data: Sections and fields, as in a training file.
        overrides: Values that win over those of `data`, by dotted field path.
        base: The folder at which relative paths start; None leaves them as they are.
        source: What to name in errors, such as a file.

    Raises:
        SpecError: it does not describe a run that can start; lists every problem found.
    """
    return TRAINING.check(data, overrides, base, source)


def check_experts(spec: TrainingSpec, num_experts: int) -> None:
    """Checks what depends on a checkpoint's number of experts, which only reading it (`model.path`) tells.

    Raises:
        SpecError: `parallel.expert_parallel` does not divide it.
    """
    problems = tuple(experts_problems(spec, num_experts))
    if problems:
        raise SpecError(problems, subject=SUBJECT)
