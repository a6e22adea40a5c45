"""What no single field of a training file can tell: fields that must agree."""

from collections.abc import Iterator

from spec.errors import Problem, show
from training.spec_schema import ConfigSpec, ModelSpec, SourceSpec, TrainingSpec


def problems_in(spec: TrainingSpec) -> Iterator[Problem]:
    """Everything wrong with a specification whose fields are each well-formed."""
    yield from _model_problems(spec.model)
    if spec.model.config is not None:
        yield from _config_problems(spec.model.config)
        yield from experts_problems(spec, spec.model.config.num_experts)
        yield from _length_problems(spec, spec.model.config.max_context)
    for index, source in enumerate(spec.data.sources):
        yield from _source_problems(source, f"data.sources.{index}", spec.model.routing)
    yield from _worker_problems(spec)
    yield from _step_problems(spec)


def experts_problems(spec: TrainingSpec, num_experts: int) -> Iterator[Problem]:
    """What a model with so many experts cannot be trained with; of a checkpoint that is known once it is read."""
    ranks = spec.parallel.expert_parallel
    if num_experts % ranks:
        yield Problem(
            "parallel.expert_parallel",
            f"{ranks} was given, which does not divide the model's {num_experts} experts. "
            f"Allowed: {_listed(_divisors(num_experts))}.",
        )


def _model_problems(model: ModelSpec) -> Iterator[Problem]:
    if model.path is None and model.config is None:
        yield Problem(
            "model",
            "neither path nor config was given. Set path to the directory of a checkpoint to start from, "
            "or config to the shape of a new model.",
        )
    if model.path is not None and model.config is not None:
        yield Problem(
            "model",
            "both path and config were given. Keep path to start from that checkpoint, which has its own shape, "
            "or config to start a new model.",
        )
    if model.config is not None and model.path is None and model.tokenizer is None:
        yield Problem(
            "model.tokenizer",
            "is missing, and a new model (model.config) has none of its own. "
            "Set it to a directory with tokenizer.json.",
        )


def _config_problems(config: ConfigSpec) -> Iterator[Problem]:
    if config.top_k > config.num_experts:
        yield Problem(
            "model.config.top_k",
            f"{config.top_k} was given, more than model.config.num_experts ({config.num_experts}). "
            "Lower the first or raise the second.",
        )
    if config.num_heads % config.num_kv_heads:
        yield Problem(
            "model.config.num_kv_heads",
            f"{config.num_kv_heads} was given, which does not divide model.config.num_heads ({config.num_heads}). "
            f"Allowed: {_listed(_divisors(config.num_heads))}.",
        )
    yield from _head_problems(config)


def _head_problems(config: ConfigSpec) -> Iterator[Problem]:
    even = "rotary embedding turns pairs of columns, so it must be even"
    if config.head_dim is not None:
        if config.head_dim % 2:
            yield Problem("model.config.head_dim", f"{config.head_dim} was given; {even}.")
    elif config.hidden_size % config.num_heads:
        yield Problem(
            "model.config.hidden_size",
            f"{config.hidden_size} was given, no multiple of model.config.num_heads ({config.num_heads}). "
            "Change one of them, or set model.config.head_dim.",
        )
    elif config.hidden_size // config.num_heads % 2:
        yield Problem(
            "model.config.head_dim",
            f"hidden_size / num_heads gives {config.hidden_size // config.num_heads}; {even}. "
            "Change one of the two, or set model.config.head_dim.",
        )


def _length_problems(spec: TrainingSpec, max_context: int) -> Iterator[Problem]:
    if spec.data.sequence_length > max_context:
        yield Problem(
            "data.sequence_length",
            f"is {spec.data.sequence_length}, more than model.config.max_context ({max_context}). "
            "Lower the first or raise the second.",
        )


def _source_problems(source: SourceSpec, path: str, routing: str) -> Iterator[Problem]:
    given = [name for name in ("task", "task_column") if getattr(source, name) is not None]
    if routing != "task":
        for name in given:
            value = show(getattr(source, name))
            advice = "which has no tasks. Leave it out, or set model.routing to task."
            yield Problem(f"{path}.{name}", f"{value} was given, and model.routing is {routing}, {advice}")
        return
    if not given:
        yield Problem(path, "has neither task nor task_column, and model.routing is task. Set one of them.")
    if len(given) == 2:
        yield Problem(
            path,
            "has both task and task_column. Keep task if all of its documents are of one task, "
            "or task_column if each names its own.",
        )
    if source.task_column is not None and source.format == "text":
        yield Problem(
            f"{path}.task_column",
            f"{show(source.task_column)} was given, and text files have no columns. Use task, or jsonl or parquet.",
        )


def _worker_problems(spec: TrainingSpec) -> Iterator[Problem]:
    workers, ranks = spec.parallel.workers, spec.parallel.expert_parallel
    if workers.min == workers.max and workers.max % ranks:
        yield Problem(
            "parallel.workers",
            f"{workers.max} was given, no multiple of parallel.expert_parallel ({ranks}): a set of experts lies on "
            f"{ranks} workers. Use {_multiple_above(workers.max, ranks)} workers, or an expert_parallel of "
            f"{_listed(_divisors(workers.max))}.",
        )
    elif workers.max < ranks:
        yield Problem(
            "parallel.workers",
            f"at most {workers.max} were given, fewer than parallel.expert_parallel ({ranks}), the workers that hold "
            "one set of experts. Raise the first or lower the second.",
        )
    if spec.parallel.num_cpus == 0 and spec.parallel.num_gpus == 0:
        yield Problem("parallel.num_cpus", "0 was given, and num_gpus is 0 too. A worker sets aside one or the other.")
    if 0 < spec.parallel.num_gpus < 1 and workers.max > 1:
        yield Problem(
            "parallel.num_gpus",
            f"{show(spec.parallel.num_gpus)} was given, and there may be {workers.max} workers: NCCL, over which GPUs "
            "exchange rows, refuses two workers on one GPU. Give each a whole one, or set parallel.workers to 1.",
        )
    if spec.schedule.batch < workers.max:
        yield Problem(
            "schedule.batch",
            f"{spec.schedule.batch} was given, fewer than the workers there may be ({workers.max}), and each needs a "
            "sequence in every step. Raise schedule.batch or lower parallel.workers.",
        )


def _step_problems(spec: TrainingSpec) -> Iterator[Problem]:
    optimizer, schedule = spec.optimizer, spec.schedule
    if optimizer.warmup_steps >= schedule.steps:
        yield Problem(
            "optimizer.warmup_steps",
            f"is {optimizer.warmup_steps}, and must be less than schedule.steps ({schedule.steps}). "
            "Lower the first or raise the second.",
        )
    if optimizer.final_lr > optimizer.peak_lr:
        yield Problem(
            "optimizer.final_lr",
            f"is {show(optimizer.final_lr)}, more than optimizer.peak_lr ({show(optimizer.peak_lr)}). "
            "Lower the first or raise the second.",
        )
    if schedule.evaluate_every is not None and spec.data.held_out == 0:
        yield Problem(
            "schedule.evaluate_every",
            f"{schedule.evaluate_every} was given, and data.held_out is 0: there are no documents to evaluate on. "
            "Set data.held_out to a share such as 0.01, or leave evaluate_every out.",
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _listed(numbers: list[int]) -> str:
    """
    >>> _listed([1, 2, 4])
    '1, 2 or 4'
    """
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _multiple_above(number: int, factor: int) -> int:
    """The smallest multiple of `factor` that is at least `number`.

    >>> _multiple_above(6, 4)
    8
    """
    return -(-number // factor) * factor
