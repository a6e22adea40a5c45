"""Checkpoints of a run: written beside the training, whole or not at all, and read back by any number of ranks.

    <folder>/step-00000100/            complete; its progress.json was written last but one, the rename came last
    <folder>/step-00000200.partial/    being written, or left by a run that ended meanwhile

`torch.distributed.checkpoint` decides who writes what: each rank what it has of the experts, and a share of what all
have; `training.tensor_files` writes it. As experts are written as rows of whole tensors, any EP and EDP can read them.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from model.config import MixtralConfig
from model.rope_scaling import UNSCALED
from training.mesh import Mesh
from training.model import TrainModel, is_expert
from training.progress import (
    FORMAT,
    PARTIAL,
    PROGRESS_FILE,
    REMEDY,
    CheckpointError,
    Complete,
    DamagedCheckpoint,
    OtherRun,
    Progress,
    checkpoint_name,
    complete_checkpoints,
    listed,
    newest_in,
    next_older,
)
from training.tensor_files import TensorReader, TensorWriter

OPTIMIZER = "optimizer."  # what the names of its state begin with

# What torch says of a run of a single process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def clear_partial(folder: Path) -> None:
    """Removes what a run that ended in the middle of a save has left."""
    for path in list(listed(folder)):
        if not path.name.endswith(PARTIAL):
            continue
        if path.is_symlink():  # else the next save of that step would be written through it
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


class Saver:
    """Writes checkpoints in the background, one at a time; every rank has one and calls it alike.

    Args:
        folder: On storage that every rank reaches.
        keep: How many complete checkpoints stay.
        timeout_s: How long one may take (`limits.save_timeout_s`).
    """

    def __init__(self, folder: Path, keep: int, timeout_s: float, mesh: Mesh) -> None:
        self._folder = folder
        self._keep = keep
        self._timeout_s = timeout_s
        self._mesh = mesh
        # Its own group: a save's messages must not get between the training's.
        limit = timedelta(seconds=timeout_s)
        self._group: Any = None if mesh.grid is None else dist.new_group(backend="gloo", timeout=limit)
        self._pending: tuple[Path, Progress, dict[str, Any], Future[Any]] | None = None

    def save(self, model: TrainModel, optimizer: Optimizer, progress: Progress) -> None:
        """Starts to write; returns once the state has been copied. Waits for the one before, if that is not done.

        Raises:
            CheckpointError: The one before, or this one, cannot be written.
        """
        self.finish()
        directory = self._folder / (checkpoint_name(progress.step) + PARTIAL)
        try:
            future: Any = async_save(  # copies what it is given before it returns
                state_of(model, optimizer, self._mesh),
                storage_writer=TensorWriter(directory),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except (OSError, CheckpointException) as error:
            raise self._failed(directory, _cause(error)) from error
        self._pending = directory, progress, asdict(model.config), future

    def poll(self) -> None:
        """Makes a save that is done the newest checkpoint; does not wait for one that is not.

        Raises:
            CheckpointError: It failed.
        """
        if self._pending is not None and self._pending[3].done():
            self.finish()

    def finish(self) -> None:
        """Waits until the pending save, if there is one, is done, and makes it the newest checkpoint.

        Raises:
            CheckpointError: It failed, or took longer than the time-out.
        """
        if self._pending is None:
            return
        (directory, progress, config, future), self._pending = self._pending, None
        try:
            future.result(self._timeout_s)
        except CheckpointException as error:
            self._remove(directory)
            raise self._failed(directory, _cause(error)) from error
        except (OSError, RuntimeError) as error:  # ranks may be writing still: `clear_partial` removes what they leave
            took_long = isinstance(error, FutureTimeout) and not future.done()
            why = f"it took longer than {self._timeout_s:g} s" if took_long else _cause(error)
            raise self._failed(directory, why) from error
        if self._mesh.rank == 0:
            try:
                self._commit(directory, progress, config)
            except OSError as error:
                self._remove(directory)
                raise self._failed(directory, _cause(error)) from error

    def finish_before(self, step: int) -> None:
        """Finishes the pending save if its weights are older than those of `step`, which are no good; else drops it.

        Args:
            step: After how many steps the weights are no good.

        Raises:
            CheckpointError: As `finish`.
        """
        if self._pending is None or self._pending[1].step < step:
            self.finish()
            return
        (directory, _, _, future), self._pending = self._pending, None
        with suppress(CheckpointException, OSError, RuntimeError):
            future.result(self._timeout_s)  # until no rank writes any more
        self._remove(directory)

    def _commit(self, directory: Path, progress: Progress, config: dict[str, Any]) -> None:
        said = {"format": FORMAT, "progress": asdict(progress), "config": config}
        _write_durably(directory / PROGRESS_FILE, json.dumps(said, indent=1))
        _sync(directory)  # what it holds, before it counts
        target = directory.with_name(directory.name.removesuffix(PARTIAL))
        if target.exists():  # of an earlier try of the same steps
            shutil.rmtree(target)
        directory.rename(target)
        _sync(self._folder)  # before older ones go: a rename that is not on disk may be undone
        for old in complete_checkpoints(self._folder)[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _remove(self, directory: Path) -> None:
        """Removes what was written of a save that is over on all ranks and does not count: it keeps room."""
        if self._mesh.rank == 0:
            shutil.rmtree(directory, ignore_errors=True)

    def _failed(self, directory: Path, why: str) -> CheckpointError:
        name = directory.name.removesuffix(PARTIAL)
        what = f"checkpoint {name} cannot be written in {self._folder}: {why}; {REMEDY}"
        return CheckpointError(f"{what}; {newest_in(self._folder)}")


def load(complete: Complete, model: TrainModel, optimizer: Optimizer | None, mesh: Mesh) -> None:
    """Reads a checkpoint into the model and, if it is given, the optimizer.

    Raises:
        CheckpointError: It cannot be read.
        OtherRun: It is of a model of other sizes, or was made with another optimizer.
        DamagedCheckpoint: It is damaged; on all ranks alike.
    """
    check_fits(complete, model.config)
    state = state_of(model, optimizer, mesh)
    _check_optimizer(complete, state)
    try:
        load_tensors(
            state,
            storage_reader=TensorReader(complete.directory, complete.tensors),
            no_dist=mesh.grid is None,
        )
    except (OSError, CheckpointException, RuntimeError, ValueError, KeyError) as error:
        why = f"{complete.directory} cannot be read: {_cause(error)}"
        kind = DamagedCheckpoint if _is_damage(error) else CheckpointError
        raise kind(f"{why}; {next_older(complete.directory)}") from error


def check_data(complete: Complete, data: str) -> None:
    """Does nothing if a run goes on with the samples of its checkpoint.

    Raises:
        OtherRun: They, or their order, are others.
    """
    if complete.progress.data != data:
        raise OtherRun(
            f"{complete.directory} was made from other data: its sources, how they are cut or the seed were changed "
            "since, so that samples would be seen twice or never; give the run another name, or the data back"
        )


# What a model's weights do not depend on: it may be read otherwise by a newer version of Manta.
DESCRIPTIVE = frozenset({"bos_token_id", "eos_token_ids", "dtype"})


def check_fits(complete: Complete, config: MixtralConfig) -> None:
    """Does nothing if a checkpoint is of a model of these sizes.

    Raises:
        OtherRun: Names what differs.
    """
    now = json.loads(json.dumps(asdict(config)))
    before = {"rope_scaling": asdict(UNSCALED)} | complete.config  # older runs know of no scaling
    differing = [name for name in now if name not in DESCRIPTIVE and before.get(name) != now[name]]
    if differing:
        words = ", ".join(f"{name} {before.get(name)} (now {now[name]})" for name in differing)
        raise OtherRun(
            f"{complete.directory} is of another model: {words}; give the run another name, or its model's settings"
        )


def _check_optimizer(complete: Complete, state: Mapping[str, Tensor]) -> None:
    """Raises OtherRun: of the optimizer's state a checkpoint has nothing of some kind, though it has all parameters."""
    lacking = [name for name in state if name not in complete.tensors]
    kinds = {name.split(".")[1] for name in lacking if name.startswith(OPTIMIZER)}
    held = {name.split(".")[1] for name in complete.tensors if name.startswith(OPTIMIZER)}
    if lacking and all(name.startswith(OPTIMIZER) for name in lacking) and not kinds & held:
        raise OtherRun(
            f"{complete.directory} was made with another optimizer: it has no {', '.join(sorted(kinds))}; give the run "
            "the settings of `optimizer` back that it was made with, or start a run of another name from what `manta "
            "export` makes of it (`model.path`)"
        )


def state_of(model: TrainModel, optimizer: Optimizer | None, mesh: Mesh) -> dict[str, Tensor]:
    """Returns the parameters and the optimizer's state by name, sharing memory: what is loaded into them is loaded."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"parameters.{name}"] = _whole(name, parameter.detach(), mesh)
        if optimizer is not None:
            for kind, value in _state_of_parameter(optimizer, parameter):
                state[f"{OPTIMIZER}{kind}.{name}"] = _whole(name, value, mesh) if value.dim() else value
    return state


def _state_of_parameter(optimizer: Optimizer, parameter: torch.nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    if parameter not in optimizer.state:
        _fill(optimizer)
    for kind, value in sorted(optimizer.state[parameter].items()):
        if isinstance(value, Tensor):
            yield kind, value


def _fill(optimizer: Optimizer) -> None:
    """Makes an optimizer that has made no step yet create its state, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        for parameter in group["params"]:
            parameter.grad = None


def _whole(name: str, value: Tensor, mesh: Mesh) -> Tensor:
    """What this rank has, as its part of the whole tensor."""
    if mesh.grid is None or not is_expert(name):
        return value
    return DTensor.from_local(value, mesh.grid, [Replicate(), Shard(0)], run_check=False)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_damage(error: BaseException) -> bool:
    """Whether another try would end alike: storage or memory may be there again, a rank that is gone is replaced."""
    failures = getattr(error, "failures", None)  # what torch's ranks have told each other
    if not isinstance(error, CheckpointException) or not failures:
        return False
    passing = (OSError, MemoryError, torch.OutOfMemoryError)
    inner = [failure for failure, *_ in failures.values()]
    return any(not isinstance(each, passing) or isinstance(each, FileNotFoundError) for each in inner)


def _cause(error: BaseException) -> str:
    """The failure of the rank that had it: torch wraps what ranks report."""
    failures = getattr(error, "failures", None)
    if isinstance(error, CheckpointException) and failures:
        rank, (inner, *_) = next(iter(failures.items()))
        return f"rank {rank}: {inner}"
    return str(error) or type(error).__name__
