"""From a training file to what the ranks need: every choice made, as plain data."""

import math
from dataclasses import replace
from pathlib import Path

from checkpoint.reader import CheckpointReader
from checkpoint.weights import as_tied
from model.config import MixtralConfig, read_config
from model.rope_scaling import beyond_context
from model.routing import Routing
from training.encoding import special_ids
from training.loop import Job
from training.losses import LossSettings
from training.sources import Source
from training.spec import SUBJECT, ParallelSpec, Problem, SpecError, TrainingSpec, check_experts
from training.step import StepSettings
from training.workers import Workers

PREPARED_DTYPE = "float32"  # what a new model's config.json says until it is exported
RAY_UNITS = 10_000  # of a CPU: what Ray counts in


def model_of(spec: TrainingSpec) -> MixtralConfig:
    """Returns the model's sizes: the checkpoint's, or the file's with the tokenizer's vocabulary.

    At level task, the tasks are not known before the data have been read: `with_tasks` adds them.

    Raises:
        ConfigError: The checkpoint is no Mixtral that can be trained.
        CheckpointError: Its weights cannot be read.
        EncodingError: The tokenizer cannot be read.
        SpecError: `parallel.expert_parallel` does not divide the checkpoint's experts.
    """
    wanted = spec.model.config
    if wanted is None:
        config = read_config(Path(str(spec.model.path)))
        check_experts(spec, config.num_experts)
        _check_fits(spec, config)
        with CheckpointReader(Path(str(spec.model.path))) as reader:
            config = as_tied(reader, config)
        return replace(config, routing=_routing(spec), eos_token_ids=_ends(spec, config))
    ids = special_ids(spec.model.tokenizer_directory)
    return MixtralConfig(
        hidden_size=wanted.hidden_size,
        ffn_size=wanted.ffn_size,
        num_layers=wanted.num_layers,
        num_heads=wanted.num_heads,
        num_kv_heads=wanted.num_kv_heads,
        head_dim=wanted.head_dim or wanted.hidden_size // wanted.num_heads,
        num_experts=wanted.num_experts,
        top_k=wanted.top_k,
        vocab_size=ids.vocab_size,
        window=wanted.window,
        max_context=wanted.max_context,
        rope_theta=wanted.rope_theta,
        norm_eps=wanted.norm_eps,
        tie_embeddings=wanted.tie_embeddings,
        bos_token_id=ids.bos_id,
        eos_token_ids=(ids.eos_id,),
        dtype=PREPARED_DTYPE,
        routing=_routing(spec),
    )


def _ends(spec: TrainingSpec, config: MixtralConfig) -> tuple[int, ...]:
    """Returns the tokens that end a text of the trained model: with the one that it learns to put there."""
    learned = special_ids(spec.model.tokenizer_directory).eos_id
    return config.eos_token_ids if learned in config.eos_token_ids else (learned, *config.eos_token_ids)


def with_tasks(config: MixtralConfig, tasks: tuple[str, ...]) -> MixtralConfig:
    """Returns the model with the tasks of its data, in the order of their numbers there; of other levels, itself."""
    if config.routing.level != "task":
        return config
    return replace(config, routing=Routing("task", tasks=tasks))


def _check_fits(spec: TrainingSpec, config: MixtralConfig) -> None:
    """Does nothing if the file asks for what the checkpoint can be trained on to.

    Raises:
        SpecError: Names the field, what the checkpoint has, and what to do.
    """
    stored, asked, problems = config.routing, _routing(spec), list[Problem]()
    if spec.data.sequence_length > config.max_context:
        words = (
            f"{spec.data.sequence_length} was given; at most {config.max_context}, the checkpoint's context, is allowed"
            f"{beyond_context(config.rope_scaling)}"
        )
        problems.append(Problem("data.sequence_length", words))
    if stored.level not in ("token", asked.level):
        words = f"{asked.level} was given; the checkpoint routes by {stored.level} and would lose that: give that"
        problems.append(Problem("model.routing", words))
    elif stored.level == "sentence" and stored.positions != asked.positions:
        words = f"{asked.positions} was given; the checkpoint was trained with {stored.positions}: give that"
        problems.append(Problem("model.sentence_positions", words))
    if problems:
        raise SpecError(problems, subject=SUBJECT)


def _routing(spec: TrainingSpec) -> Routing:
    level = spec.model.routing
    return Routing(level, positions=spec.model.sentence_positions if level == "sentence" else 0)


def sources_of(spec: TrainingSpec) -> list[Source]:
    """Returns what is to be read."""
    return [
        Source(source.path, source.format, source.column, source.task, source.task_column)
        for source in spec.data.sources
    ]


def run_folder(spec: TrainingSpec) -> Path:
    """Returns the run's own folder in its storage."""
    return Path(spec.storage) / spec.name


def job_of(spec: TrainingSpec, config: MixtralConfig, store: Path, held_out: Path | None) -> Job:
    """Returns what each rank is to do, with the token stores that were made of the sources."""
    losses, capacity = spec.losses, spec.parallel.dispatch == "capacity"
    return Job(
        folder=run_folder(spec),
        store=store,
        held_out=held_out,
        config=config,
        start_from=None if spec.model.path is None else Path(spec.model.path),
        seed=spec.model.seed,
        dtype=spec.model.dtype,
        sequence_length=spec.data.sequence_length,
        separate_documents=spec.data.separate_documents,
        steps=spec.schedule.steps,
        batch=spec.schedule.batch,
        optimizer=spec.optimizer,
        step=StepSettings(
            losses=LossSettings(losses.balance, losses.balance_scope, losses.router_z),
            capacity_factor=spec.parallel.capacity_factor if capacity else None,
            jitter=losses.jitter,
            clip_norm=spec.optimizer.clip_norm,
            seed=spec.model.seed,
        ),
        evaluate_every=spec.schedule.evaluate_every,
        evaluate_batches=spec.schedule.evaluate_batches,
        checkpoint_every=spec.checkpoints.every,
        keep_checkpoints=spec.checkpoints.keep,
        save_timeout_s=spec.limits.save_timeout_s,
    )


def workers_of(spec: TrainingSpec, num_cores: float = math.inf) -> Workers:
    """Returns the ranks that the file asks for.

    Args:
        num_cores: CPUs, as Ray counts them, that the ranks share if there are fewer than ranks.
    """
    parallel, limits = spec.parallel, spec.limits
    return Workers(
        fewest=parallel.workers.min,
        most=parallel.workers.max,
        expert_parallel=parallel.expert_parallel,
        num_cpus=_cpus_of_worker(parallel, num_cores),
        num_gpus=parallel.num_gpus,
        max_failures=limits.max_failures,
        start_timeout_s=limits.start_timeout_s,
        collective_timeout_s=limits.collective_timeout_s,
    )


def _cpus_of_worker(parallel: ParallelSpec, num_cores: float) -> float:
    if parallel.num_cpus != "auto":
        return parallel.num_cpus
    fewest = parallel.workers.min
    if num_cores >= fewest:
        return 1.0
    return math.floor(num_cores / fewest * RAY_UNITS) / RAY_UNITS
