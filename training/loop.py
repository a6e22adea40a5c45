"""The training loop of one rank. It knows nothing of Ray: who starts the ranks makes the mesh and calls `run`.

L positions of a sequence.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from model.config import MixtralConfig
from training.checkpoints import Saver, check_data, check_fits, load
from training.cursor import Cursor, SampleOrder, part
from training.initial import InitialWeights, RandomWeights
from training.mesh import Mesh
from training.metrics import MetricsError, MetricsLog, Record
from training.model import Batch, TrainModel
from training.optimizer import learning_rate, make_optimizer, set_learning_rate
from training.packing import Batch as PackedBatch
from training.packing import PackedData
from training.progress import (
    CHECKPOINT_FOLDER,
    REMEDY,
    CheckpointError,
    Complete,
    DamagedCheckpoint,
    Progress,
    checkpoint_name,
    complete_checkpoints,
    newest_in,
    read_newest,
    step_of,
)
from training.spec_schema import OptimizerSpec
from training.starting import CheckpointWeights
from training.step import NonFiniteLoss, StepFigures, StepSettings, train_step
from training.storage import check_space, checkpoint_bytes, prepare
from training.tokens import TokenStore

NO_STEP = -1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Job:
    """All that a rank needs, as plain data.

    Args:
        folder: The run's own, on storage that every rank reaches.
        store, held_out: The token stores; no held-out one: nothing is evaluated.
        start_from: A Hugging Face checkpoint; None: random weights from `seed`.
        dtype: What is computed in; parameters are float32, or float64 if that is.
        steps: Of the whole run.
        batch: Sequences of a step, over all ranks.
    """

    folder: Path
    store: Path
    held_out: Path | None
    config: MixtralConfig
    start_from: Path | None
    seed: int
    dtype: str
    sequence_length: int
    separate_documents: bool
    steps: int
    batch: int
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    step: StepSettings = field(default_factory=StepSettings)
    evaluate_every: int | None = None
    evaluate_batches: int = 8
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    save_timeout_s: float = 600.0

    @property
    def data(self) -> str:
        """Names the samples and their order: a store lies in a folder that is named by what it was made from."""
        cut = "separate" if self.separate_documents else "together"
        return f"{self.store.parent.name}/{self.store.name}, {self.sequence_length} tokens, {cut}, seed {self.seed}"

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINT_FOLDER


class TrainingStopped(RuntimeError):
    """Training cannot go on, and another try would end alike; says why, when, and what there is to go on from."""


class _Run:
    def __init__(self, job: Job, mesh: Mesh) -> None:
        self.job = job
        self.mesh = mesh
        self.data = _packed(job, job.store)
        self.order = SampleOrder(self.data.num_samples, job.seed)
        self.held_out = None if job.held_out is None else _packed(job, job.held_out)
        self.model = TrainModel(job.config, _initial(job), mesh, DTYPES[job.dtype])
        self.optimizer: Optimizer = make_optimizer(self.model.parameters(), job.optimizer)
        self.saver = Saver(job.checkpoints, job.keep_checkpoints, job.save_timeout_s, mesh)


def run(job: Job, mesh: Mesh, on_record: Callable[[Record], None] = lambda record: None) -> None:
    """Trains until the last step, from the newest checkpoint if there is one.

    Args:
        on_record: Called on the first rank after each step.

    Raises:
        TrainingStopped: The loss is no number any more.
        CheckpointError: A checkpoint or the metrics cannot be written.
        OtherRun: The newest checkpoint is of another model, or was made from other data.
        DamagedCheckpoint: It is damaged, or the metrics are not what a run writes; on all ranks.
    """
    newest = _newest(job, mesh)
    if newest is not None:
        check_fits(newest, job.config)
        check_data(newest, job.data)
    it = _Run(job, mesh)
    made, cursor = 0, Cursor(0)
    if newest is not None:
        load(newest, it.model, it.optimizer, mesh)
        made, cursor = newest.progress.step, Cursor(newest.progress.samples_seen)
    if mesh.rank == 0 and made < job.steps:
        check_space(job.checkpoints, checkpoint_bytes(it.model, job.optimizer, mesh))
    log = _metrics(job, made, mesh)
    try:
        while made < job.steps:
            started_s = time.perf_counter()
            figures, rate = _step(it, made, cursor)
            took_s = time.perf_counter() - started_s
            made, cursor = made + 1, cursor.after(job.batch)
            held_out = _evaluate(it) if _due(job.evaluate_every, made, job.steps) else None
            if log is not None:
                record = _record(it, made, cursor, figures, rate, held_out, took_s)
                _add(log, record, it)
                on_record(record)
            it.saver.poll()
            if _due(job.checkpoint_every, made, job.steps):
                progress = Progress(made, cursor.samples_seen, job.data)
                it.saver.save(it.model, it.optimizer, progress)
        it.saver.finish()
    finally:
        if log is not None:
            log.close()


def _step(it: _Run, step: int, cursor: Cursor) -> tuple[StepFigures, float]:
    job, mesh = it.job, it.mesh
    rate = learning_rate(step, job.steps, job.optimizer)
    set_learning_rate(it.optimizer, rate)
    batch = _batch(it, cursor)
    most_rows = math.ceil(job.batch / mesh.world) * job.sequence_length
    try:
        return train_step(it.model, it.optimizer, batch, step, most_rows, job.step, mesh), rate
    except NonFiniteLoss as error:
        with suppress(CheckpointError):  # that there is nothing to go on with is worse
            it.saver.finish_before(step)
        raise TrainingStopped(f"{error}; {newest_in(job.checkpoints, but=step)}") from error


def _batch(it: _Run, cursor: Cursor) -> Batch:
    return _on_device(it.data.batch(it.order.batch(cursor, it.job.batch, it.mesh.rank, it.mesh.world)), it.mesh)


def _on_device(packed: PackedBatch, mesh: Mesh) -> Batch:
    values = (packed.ids_BL, packed.labels_BL, packed.positions_BL, packed.tasks_B)
    return Batch(*(torch.from_numpy(value).to(mesh.device) for value in values))


@torch.no_grad()
def _evaluate(it: _Run) -> float | None:
    """Returns the held-out loss in nats per label; dropless, without noise. Always of the same samples."""
    if it.held_out is None:
        return None
    job, mesh = it.job, it.mesh
    totals = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    order = SampleOrder(it.held_out.num_samples, job.seed)  # of all sources and tasks, not of the first ones
    num_samples = min(it.held_out.num_samples, job.evaluate_batches * job.batch)
    for start in range(0, num_samples, job.batch):
        mine = part(min(job.batch, num_samples - start), mesh.rank, mesh.world)
        indices = order.samples(range(start + mine.start, start + mine.stop))
        outcome = it.model(_on_device(it.held_out.batch(indices), mesh))
        totals += torch.tensor([float(outcome.nats), outcome.num_labels], dtype=torch.float64, device=mesh.device)
    if mesh.everybody is not None:
        dist.all_reduce(totals, group=mesh.everybody)
    return float(totals[0] / totals[1].clamp(min=1))


def _packed(job: Job, store: Path) -> PackedData:
    return PackedData(TokenStore.open(store), job.sequence_length, job.separate_documents)


def _initial(job: Job) -> InitialWeights:
    dtype = torch.float64 if job.dtype == "float64" else torch.float32
    if job.start_from is not None:
        return CheckpointWeights(job.start_from, job.config, job.seed, dtype)
    return RandomWeights(job.config, job.seed, dtype)


def _newest(job: Job, mesh: Mesh) -> Complete | None:
    """Returns the checkpoint to go on from: the newest that the first rank sees.

    Every rank reads it, and only then: a rank that ended by itself would leave the others waiting for it.

    Raises:
        CheckpointError: The storage cannot be written, or a rank does not see that checkpoint as it is.
        DamagedCheckpoint: On all ranks: it is damaged.
    """
    found: list[Path] = []
    if mesh.rank == 0:
        prepare(job.checkpoints)
        found = complete_checkpoints(job.checkpoints)
    step = torch.tensor(step_of(found[0]) if found else NO_STEP, device=mesh.device)
    if mesh.everybody is not None:
        dist.broadcast(step, src=0, group=mesh.everybody)
    if int(step) == NO_STEP:
        return None
    return _read_by_all(job.checkpoints / checkpoint_name(int(step)), mesh)


def _read_by_all(directory: Path, mesh: Mesh) -> Complete:
    """Reads it; no rank ends before all of them have tried."""
    complete, error = None, None
    try:
        complete = read_newest(directory)
    except CheckpointError as failure:
        error = failure
    num_damaged = torch.tensor(int(isinstance(error, DamagedCheckpoint)), device=mesh.device)
    if mesh.everybody is not None:
        dist.all_reduce(num_damaged, group=mesh.everybody)
    if complete is not None:
        return complete
    if int(num_damaged) == mesh.world:
        raise DamagedCheckpoint(str(error)) from error
    raise CheckpointError(str(error)) from error  # what only some ranks see may be mended by another try


def _metrics(job: Job, made: int, mesh: Mesh) -> MetricsLog | None:
    """Returns the first rank's log, and on the others nothing; if that is damaged, all ranks end."""
    log, damage = None, None
    if mesh.rank == 0:
        try:
            log = MetricsLog(job.folder, made)
        except MetricsError as error:
            damage = error
        except OSError as error:
            raise _unwritable(job, error) from error
    is_damaged = torch.tensor(int(damage is not None), device=mesh.device)
    if mesh.everybody is not None:
        dist.broadcast(is_damaged, src=0, group=mesh.everybody)
    if is_damaged:
        raise DamagedCheckpoint(str(damage or f"the metrics in {job.folder} are not what a run writes")) from damage
    return log


def _add(log: MetricsLog, record: Record, it: _Run) -> None:
    try:
        log.add(record)
    except OSError as error:
        with suppress(CheckpointError):
            it.saver.finish()  # it may have been written already
        raise _unwritable(it.job, error) from error


def _unwritable(job: Job, error: OSError) -> CheckpointError:
    what = f"the metrics in {job.folder} cannot be written: {error.strerror or error}"
    return CheckpointError(f"{what}; {REMEDY}; {newest_in(job.checkpoints)}")


def _due(every: int | None, made: int, steps: int) -> bool:
    return every is not None and (made % every == 0 or made == steps)


def _record(
    it: _Run, made: int, cursor: Cursor, figures: StepFigures, rate: float, held_out: float | None, took_s: float
) -> Record:
    losses = figures.losses
    return Record(
        step=made,
        loss=losses.nats,
        balance=losses.balance,
        router_z=losses.router_z,
        gradient_norm=figures.gradient_norm,
        learning_rate=rate,
        tokens_per_s=it.job.batch * it.job.sequence_length / took_s,
        samples_seen=cursor.samples_seen,
        rows_per_expert=losses.rows_per_expert,
        dropped_per_layer=losses.dropped_per_layer,
        held_out_loss=held_out,
        workers=it.mesh.world,
        expert_parallel=it.mesh.shape.expert_parallel,
    )
