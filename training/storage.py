"""Whether a run's storage can be written and has room, found out before anything is computed."""

import shutil
import tempfile
from pathlib import Path

from training.checkpoints import clear_partial
from training.mesh import Mesh
from training.model import TrainModel
from training.progress import REMEDY, CheckpointError, newest_in
from training.spec_schema import OptimizerSpec


def prepare(folder: Path) -> None:
    """Makes the checkpoints' folder, and removes what a save that was broken off has left there.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_partial(folder)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; give another `storage`"
        ) from error


def check_space(folder: Path, num_bytes: int) -> None:
    """Does nothing if one more checkpoint has room.

    Raises:
        CheckpointError: It has not; says how much is free.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError:  # some mounted object stores cannot say; a write that fails will
        return
    if usage.total > 0 and usage.free < num_bytes:
        what = f"{folder} has {usage.free / 1e6:.1f} MB free, and a checkpoint takes {num_bytes / 1e6:.1f} MB"
        raise CheckpointError(f"{what}; {REMEDY}; {newest_in(folder)}")


def checkpoint_bytes(model: TrainModel, optimizer: OptimizerSpec, mesh: Mesh) -> int:
    """Returns what a checkpoint of the whole model takes: parameters, and what the optimizer keeps of each."""
    kept = 2 if optimizer.name == "adamw" else int(optimizer.momentum > 0)
    dense = sum(parameter.nbytes for _, parameter in model.dense_parameters())
    experts = sum(parameter.nbytes for _, parameter in model.expert_parameters()) * mesh.shape.expert_parallel
    return (dense + experts) * (1 + kept)
