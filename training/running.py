"""A training file made so, on the Ray that this process has joined: tokens first, then the ranks."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.writer import copy_tokenizer
from model.config import MixtralConfig
from training.checkpoints import check_data, check_fits
from training.export import TOKENIZER_FOLDER
from training.ingest import Ingested, ingest
from training.loop import Job
from training.packing import PackedData
from training.progress import PARTIAL, CheckpointError, Complete, newest_checkpoint
from training.resolve import job_of, model_of, run_folder, sources_of, with_tasks, workers_of
from training.room import num_cores, num_gpus
from training.spec import TrainingSpec
from training.trainer import TrainingFailed, train


@dataclass(frozen=True)
class Finished:
    """A run that has reached its last step."""

    folder: Path
    config: MixtralConfig
    checkpoint: Complete


@dataclass(frozen=True)
class Watch:
    """What whoever started it wants to hear of.

    Args:
        on_tokens: Documents and tokens read so far.
        on_data: The token stores are ready.
        on_record: A step was made (`training.metrics.Record` as plain data).
        on_waiting: There is no room for the workers yet; says for what.
        on_notice: What the user should know, such as that GPUs are not used.
    """

    on_tokens: Callable[[int, int], None] = lambda documents, tokens: None
    on_data: Callable[[Ingested], None] = lambda ingested: None
    on_record: Callable[[dict[str, Any]], None] = lambda record: None
    on_waiting: Callable[[str], None] = lambda why: None
    on_notice: Callable[[str], None] = lambda text: None


def run_training(spec: TrainingSpec, watch: Watch, own_ray: bool = False) -> Finished:
    """Runs what a training file says to its end; goes on with a run of the same name in the same storage.

    Args:
        own_ray: Whether Manta has started Ray itself: no host will be added to it.

    Raises:
        ValueError: The file, the checkpoint, the tokenizer or the data are not as they should be; says what to do.
        NoRoom: The workers found no room.
        TrainingFailed: It did not reach its end; says why, and what there is to go on from.
    """
    config = model_of(spec)
    storage, workers = Path(spec.storage), workers_of(spec, num_cores() if own_ray else math.inf)
    if notice := workers.unused_gpus(num_gpus()):
        watch.on_notice(notice)
    ingested = ingest(
        sources_of(spec),
        spec.model.tokenizer_directory,
        storage,
        config.vocab_size,
        spec.data.held_out,
        watch.on_tokens,
        min(1.0, workers.num_cpus),  # what a rank fits in, a task that reads does too
    )
    PackedData(ingested.training, spec.data.sequence_length)  # whether there is anything to learn, before ranks start
    watch.on_data(ingested)
    config = with_tasks(config, ingested.training.info.task_names)
    held_out = None if ingested.held_out is None else ingested.held_out.directory
    job = job_of(spec, config, ingested.training.directory, held_out)
    _check_newest(job)  # before anything of the run is replaced
    keep_tokenizer(spec.model.tokenizer_directory, job.folder)
    train(job, workers, watch.on_record, watch.on_waiting)
    newest = newest_checkpoint(job.checkpoints)
    if newest is None:
        raise TrainingFailed(f"{run_folder(spec)} has no checkpoint, though the run has ended")
    return Finished(job.folder, config, newest)


def keep_tokenizer(directory: Path, run: Path) -> None:
    """Copies a tokenizer's files into a run's folder, for whoever exports it. Of another one that is there none stay.

    Raises:
        OSError: They cannot be read or written.
    """
    target = run / TOKENIZER_FOLDER
    if target.exists() and target.samefile(directory):
        return
    scratch = target.with_name(TOKENIZER_FOLDER + PARTIAL)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    copy_tokenizer(directory, scratch)
    if target.is_symlink():  # it is replaced, not what it leads to
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    scratch.rename(target)


def _check_newest(job: Job) -> None:
    """Does nothing if the ranks can go on from the newest checkpoint, or there is none.

    Raises:
        TrainingFailed: They cannot, as each of them would find too.
    """
    try:
        newest = newest_checkpoint(job.checkpoints)
        if newest is not None:
            check_fits(newest, job.config)
            check_data(newest, job.data)
    except CheckpointError as error:
        raise TrainingFailed(str(error)) from error
