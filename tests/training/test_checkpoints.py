"""Checkpoints: written by some ranks, read by others, whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.naive import GivenWeights, parameters_of, random_batch, small_config
from tests.training.ranks import Ranks
from training.checkpoints import Saver, clear_partial, load, state_of
from training.mesh import Mesh, MeshShape, lone_mesh, make_mesh
from training.model import TrainModel
from training.optimizer import make_optimizer
from training.progress import (
    CheckpointError,
    Complete,
    DamagedCheckpoint,
    Progress,
    checkpoint_name,
    complete_checkpoints,
    newest_checkpoint,
    newest_in,
    next_older,
    read_progress,
    step_of,
)
from training.spec_schema import OptimizerSpec
from training.step import StepSettings, train_step

CONFIG = small_config(num_experts=4)
SAVE_S = 60.0


def trained(mesh: Mesh, seed: int, chosen: str, steps: int = 2) -> tuple[TrainModel, Any]:
    model = TrainModel(CONFIG, GivenWeights(parameters_of(CONFIG, seed)), mesh, torch.float64)
    optimizer = make_optimizer(model.parameters(), settings_of(chosen))
    for step in range(steps):
        batch = random_batch(CONFIG, 100 * seed + 10 * step + mesh.rank, 2, 8)
        train_step(model, optimizer, batch, step, 16, StepSettings(), mesh)
    return model, optimizer


def settings_of(chosen: str) -> OptimizerSpec:
    return OptimizerSpec(name=chosen, momentum=0.9)  # pyright: ignore[reportArgumentType]


def save(rank: int, shape: MeshShape, folder: Path, seed: int, chosen: str) -> dict[str, Tensor]:
    mesh = make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh()
    model, optimizer = trained(mesh, seed, chosen)
    saver = Saver(folder, 2, SAVE_S, mesh)
    saver.save(model, optimizer, Progress(2, 8, "store"))
    kept = {name: local(value).clone() for name, value in state_of(model, optimizer, mesh).items()}
    for parameter in model.parameters():  # what follows is not what was saved
        parameter.data.fill_(float("nan"))
    saver.finish()
    return kept


def restore(rank: int, shape: MeshShape, folder: Path, chosen: str) -> dict[str, Tensor]:
    mesh = make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh()
    poison = {name: torch.full_like(value, float("nan")) for name, value in parameters_of(CONFIG, 0).items()}
    model = TrainModel(CONFIG, GivenWeights(poison), mesh, torch.float64)
    optimizer = make_optimizer(model.parameters(), settings_of(chosen))
    load(newest(folder), model, optimizer, mesh)
    return {name: local(value) for name, value in state_of(model, optimizer, mesh).items()}


def newest(folder: Path) -> Complete:
    found = newest_checkpoint(folder)
    assert found is not None
    return found


def steps_in(folder: Path) -> list[int]:
    return [step_of(directory) for directory in complete_checkpoints(folder)]


def local(value: Any) -> Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def whole(parts: list[dict[str, Tensor]], expert_parallel: int) -> dict[str, Tensor]:
    """The state of the whole model from what the ranks have."""
    first = parts[0]
    return {
        name: torch.cat([part[name] for part in parts[:expert_parallel]])
        if name.endswith(("gate_up", "down")) and value.dim()
        else value
        for name, value in first.items()
    }


@pytest.mark.parametrize("chosen", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (MeshShape(2, 1), MeshShape(1, 1)),
        (MeshShape(2, 1), MeshShape(4, 1)),
        (MeshShape(1, 2), MeshShape(2, 1)),
        (MeshShape(2, 2), MeshShape(1, 1)),
        (MeshShape(1, 1), MeshShape(2, 2)),
    ],
    ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}",
)
def test_any_ranks_read_what_others_wrote(
    saved: MeshShape, loaded: MeshShape, chosen: str, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    folder = tmp_path / "checkpoints"
    written = whole(ranks.run(saved.world, save, saved, folder, seed, chosen), saved.expert_parallel)
    parts = ranks.run(loaded.world, restore, loaded, folder, chosen)
    assert read_progress(folder / checkpoint_name(2)).progress == Progress(2, 8, "store")
    for start in range(0, loaded.world, loaded.expert_parallel):
        read = whole(parts[start : start + loaded.expert_parallel], loaded.expert_parallel)
        assert read.keys() == written.keys()
        assert len(read) > 2 * len(parameters_of(CONFIG, 0)) - 1
        for name, value in written.items():
            assert torch.equal(read[name], value), name


def test_only_complete_ones_count_and_old_ones_go(tmp_path: Path, seed: int) -> None:
    model, optimizer = trained(lone_mesh(), seed, "adamw", steps=1)
    saver = Saver(tmp_path, 2, SAVE_S, lone_mesh())
    for step in (10, 20, 30):
        saver.save(model, optimizer, Progress(step, 0, "store"))
    assert steps_in(tmp_path) == [20, 10], "the third is being written"
    saver.finish()
    assert steps_in(tmp_path) == [30, 20]
    (tmp_path / "step-00000040.partial").mkdir()
    (tmp_path / "step-00000050").mkdir()  # copied without its progress
    assert steps_in(tmp_path) == [30, 20]
    clear_partial(tmp_path)
    assert not (tmp_path / "step-00000040.partial").exists()


def test_a_checkpoint_of_other_sizes_is_refused(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    ranks.run(1, save, MeshShape(1, 1), tmp_path / "run", seed, "adamw")
    other = replace(CONFIG, ffn_size=8, num_layers=1)
    model = TrainModel(other, GivenWeights(parameters_of(other, seed)), lone_mesh(), torch.float64)
    with pytest.raises(CheckpointError, match=r"another model: ffn_size 24 \(now 8\), num_layers 2 \(now 1\)"):
        load(newest(tmp_path / "run"), model, None, lone_mesh())


def test_a_damaged_checkpoint_is_named(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    ranks.run(1, save, MeshShape(1, 1), tmp_path / "run", seed, "adamw")
    complete = newest(tmp_path / "run")
    for path in complete.directory.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    model, optimizer = trained(lone_mesh(), seed, "adamw", steps=0)
    alone = "there is no older one: once step-00000002 is moved away, the run begins anew"
    with pytest.raises(DamagedCheckpoint, match=rf"step-00000002 cannot be read: .*; {alone}"):
        load(complete, model, optimizer, lone_mesh())
    said = json.loads((complete.directory / "progress.json").read_text())
    (complete.directory / "progress.json").write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(DamagedCheckpoint, match="has format 99; this version of Manta reads 2"):
        newest_checkpoint(tmp_path / "run")


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints"
    file.write_text("a file where a folder is to be")
    said = "checkpoints cannot be read: Not a directory; see that it is a folder, and that this user can read it"
    for look in (newest_checkpoint, complete_checkpoints):
        with pytest.raises(CheckpointError, match=said):
            look(file)
    assert said in newest_in(file)
    assert said in next_older(file / checkpoint_name(2))


def test_a_folder_that_cannot_be_written_is_named_and_the_last_one_stays(tmp_path: Path, seed: int) -> None:
    model, optimizer = trained(lone_mesh(), seed, "adamw", steps=1)
    saver = Saver(tmp_path, 2, SAVE_S, lone_mesh())
    saver.save(model, optimizer, Progress(10, 0, "store"))
    saver.finish()
    (tmp_path / "step-00000020.partial").write_text("a file where a folder is to be")
    saver.save(model, optimizer, Progress(20, 0, "store"))
    with pytest.raises(
        CheckpointError, match=r"step-00000020 cannot be written in .*; the newest complete checkpoint is step-00000010"
    ):
        saver.finish()
    assert steps_in(tmp_path) == [10]


def saved(folder: Path, seed: int, steps: tuple[int, ...], keep: int = 9) -> Saver:
    """Complete checkpoints of some steps, and who has written them."""
    model, optimizer = trained(lone_mesh(), seed, "sgd", steps=1)
    saver = Saver(folder, keep, SAVE_S, lone_mesh())
    for step in steps:
        saver.save(model, optimizer, Progress(step, 0, "store"))
        saver.finish()
    return saver


def test_a_damaged_old_checkpoint_is_in_nobody_s_way(tmp_path: Path, seed: int) -> None:
    saved(tmp_path, seed, (10, 20))
    (tmp_path / "step-00000010" / "progress.json").write_text("{")
    assert newest(tmp_path).progress.step == 20
    saved(tmp_path, seed, (30,), keep=2)
    assert steps_in(tmp_path) == [30, 20], "it went as it would have gone whole"


def test_a_damaged_newest_checkpoint_is_named_with_the_next_older(tmp_path: Path, seed: int) -> None:
    saved(tmp_path, seed, (10, 20, 30))
    for name in ("step-00000010", "step-00000030"):
        (tmp_path / name / "progress.json").write_text("{")
    words = "the next older is step-00000020, which is used once step-00000030 is moved away"
    with pytest.raises(DamagedCheckpoint, match=rf"step-00000030 is no complete checkpoint .*; {words}"):
        newest_checkpoint(tmp_path)
    assert newest_in(tmp_path) == "the newest complete checkpoint is step-00000030"


def test_no_older_one_is_advised_in_place_of_a_pickled_one(tmp_path: Path, seed: int) -> None:
    """The older ones are pickled too."""
    saved(tmp_path, seed, (10, 20))
    for name in ("step-00000010", "step-00000020"):
        path = tmp_path / name / "progress.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(DamagedCheckpoint, match=r"step-00000020 was written by an earlier version .*`model.path`\)$"):
        newest_checkpoint(tmp_path)


def test_storage_that_cannot_be_read_just_now_is_no_damage(
    ranks: Ranks, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another try may well succeed."""

    def fail(*given: object, **more: object) -> Any:
        raise OSError(116, "Stale file handle")

    ranks.run(1, save, MeshShape(1, 1), tmp_path, seed, "adamw")
    complete = newest(tmp_path)
    model, optimizer = trained(lone_mesh(), seed, "adamw", steps=0)
    with monkeypatch.context() as patch:
        patch.setattr("training.checkpoints.TensorReader.read_data", fail)
        with pytest.raises(CheckpointError, match="Stale file handle") as caught:
            load(complete, model, optimizer, lone_mesh())
    assert not isinstance(caught.value, DamagedCheckpoint)
    with monkeypatch.context() as patch:
        patch.setattr("training.tensor_files.read_header", fail)
        with pytest.raises(CheckpointError, match="rank 0: .*Stale file handle") as caught:
            load(complete, model, optimizer, lone_mesh())
    assert not isinstance(caught.value, DamagedCheckpoint)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CheckpointError, match="Stale file handle") as caught:
        newest_checkpoint(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_a_save_is_not_failed_by_a_damaged_older_one(tmp_path: Path, seed: int) -> None:
    saved(tmp_path, seed, (10,))
    (tmp_path / "step-00000010" / "progress.json").write_text("{")
    saved(tmp_path, seed, (20,))
    assert newest(tmp_path).progress.step == 20


def test_a_pending_save_of_weights_that_are_no_good_is_dropped(tmp_path: Path, seed: int) -> None:
    model, optimizer = trained(lone_mesh(), seed, "sgd", steps=1)
    saver = saved(tmp_path, seed, (10,), keep=1)
    saver.save(model, optimizer, Progress(20, 0, "store"))
    saver.finish_before(20)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    saver.save(model, optimizer, Progress(20, 0, "store"))
    saver.finish_before(21)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"], "older weights are good"
    saver.finish_before(21)  # nothing is pending
