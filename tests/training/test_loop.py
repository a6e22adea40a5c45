"""The loop of a rank: what it writes, that it goes on where it stopped, and how it ends when it cannot."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.config import read_config
from tests.random_checkpoint import make_checkpoint
from tests.training.naive import small_config
from tests.training.ranks import Ranks
from tests.training.room import files_of_at_most
from tests.training.small_data import make_store
from training.board import EVENTS
from training.cursor import Cursor, SampleOrder
from training.loop import Job, TrainingStopped, run
from training.losses import LossSettings
from training.mesh import Mesh, MeshShape, lone_mesh, make_mesh
from training.metrics import Follower, MetricsLog, Record, read_metrics
from training.packing import PackedData
from training.progress import CheckpointError, DamagedCheckpoint, OtherRun, complete_checkpoints, step_of
from training.spec_schema import OptimizerSpec
from training.step import StepSettings
from training.tokens import TokenStore

CONFIG = small_config(num_experts=4, tie_embeddings=True)
STEPS = 12
EXPLODING = OptimizerSpec(name="sgd", peak_lr=1e200, final_lr=1e200, warmup_steps=0, clip_norm=None)


def job(folder: Path, seed: int, **changes: Any) -> Job:
    """A small run in float64, so that ranks agree beyond any doubt; the data are patterns that can be learnt."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(2, CONFIG.vocab_size, 60)
    documents = [[int(start), *(((start + place) % 30) + 2 for place in range(12)), 1] for start in starts]
    for name, part in (("store", documents[:50]), ("held_out", documents[50:])):
        if not (folder / name).exists():
            make_store(folder / name, [[int(token) for token in one] for one in part], vocab_size=CONFIG.vocab_size)
    made = Job(
        folder=folder / "run",
        store=folder / "store",
        held_out=folder / "held_out",
        config=CONFIG,
        start_from=None,
        seed=seed,
        dtype="float64",
        sequence_length=8,
        separate_documents=True,
        steps=STEPS,
        batch=8,
        optimizer=OptimizerSpec(peak_lr=0.02, final_lr=0.002, warmup_steps=2),
        step=StepSettings(LossSettings(balance=0.02, router_z=0.001)),
        evaluate_every=4,
        evaluate_batches=2,
        checkpoint_every=5,
    )
    return replace(made, **changes)


def rank(rank: int, shape: MeshShape, what: Job) -> None:
    run(what, make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh())


def curve(folder: Path) -> list[tuple[int, float, float | None]]:
    return [(one["step"], one["loss"], one["held_out_loss"]) for one in read_metrics(folder / "run")]


def assert_same_curve(one: Path, other: Path) -> None:
    for (step, loss, held_out), (step_too, loss_too, held_out_too) in zip(curve(one), curve(other), strict=True):
        assert step == step_too
        assert loss == pytest.approx(loss_too, rel=1e-9)
        assert (held_out is None) == (held_out_too is None)
        assert held_out is None or held_out == pytest.approx(held_out_too, rel=1e-9)


def events_of(path: Path) -> Iterator[Any]:
    """What a file for TensorBoard holds: length (8), checksum (4), protobuf, checksum (4), and so on."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield EVENTS.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def all_scalars(path: Path) -> list[tuple[str, float]]:
    return [(value.tag, value.simple_value) for event in events_of(path) for value in event.summary.value]


def board(path: Path, tag: str) -> dict[int, float]:
    """The values of a scalar for TensorBoard, by step."""
    return {
        event.step: value.simple_value for event in events_of(path) for value in event.summary.value if value.tag == tag
    }


def test_a_run_learns_and_writes_what_it_did(tmp_path: Path, seed: int) -> None:
    seen: list[int] = []
    run(job(tmp_path, seed), lone_mesh(), lambda record: seen.append(record.step))
    records = read_metrics(tmp_path / "run")
    assert seen == [one["step"] for one in records] == list(range(1, STEPS + 1))
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert [one["step"] for one in records if one["held_out_loss"] is not None] == [4, 8, 12]
    assert [one["samples_seen"] for one in records] == [8 * step for step in range(1, STEPS + 1)]
    for one in records:
        assert [sum(counts) for counts in one["rows_per_expert"]] == [8 * 8 * CONFIG.top_k] * CONFIG.num_layers
        assert one["dropped_per_layer"] == [0] * CONFIG.num_layers
    assert [step_of(one) for one in complete_checkpoints(tmp_path / "run" / "checkpoints")] == [12, 10]
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert board(events, "loss/training") == pytest.approx({one["step"]: one["loss"] for one in records}, rel=1e-6)
    assert sorted(board(events, "loss/held out")) == [4, 8, 12]
    for layer in range(CONFIG.num_layers):
        for expert in range(CONFIG.num_experts):
            rows = {one["step"]: one["rows_per_expert"][layer][expert] for one in records}
            assert board(events, f"layer {layer}/copies for expert {expert}") == rows


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (MeshShape(1, 1), MeshShape(1, 1)),
        (MeshShape(2, 1), MeshShape(1, 1)),
        (MeshShape(2, 1), MeshShape(4, 1)),
        (MeshShape(1, 3), MeshShape(2, 1)),
    ],
    ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}",
)
def test_a_resumed_run_has_the_curve_of_an_undisturbed_one(
    before: MeshShape, after: MeshShape, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(job(whole, seed), lone_mesh())
    ranks.run(before.world, _until, before, job(broken, seed), 7)  # its last checkpoint is of step 5
    (broken / "run" / "checkpoints" / "step-00000007.partial").mkdir()
    ranks.run(after.world, rank, after, job(broken, seed))
    assert_same_curve(whole, broken)
    assert not list((broken / "run" / "checkpoints").glob("*.partial"))


class _Enough(Exception):
    """The process is to end here."""


def _until(rank: int, shape: MeshShape, what: Job, last: int) -> None:
    """Runs a job until each rank has made `last` steps, and is then as if it had been killed."""
    from training import loop

    made = 0
    before = loop.train_step

    def counted(*args: Any) -> Any:
        nonlocal made
        if made == last:
            raise _Enough
        made += 1
        return before(*args)

    loop.train_step = counted
    try:
        run(what, make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh())
    except _Enough:
        pass
    finally:
        loop.train_step = before


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, seed: int) -> None:
    run(job(tmp_path, seed, steps=6), lone_mesh())
    broken = job(tmp_path, seed, optimizer=EXPLODING, step=StepSettings(clip_norm=None))
    with pytest.raises(TrainingStopped, match=r"of step \d+ .*; the newest complete checkpoint is step-00000006"):
        run(broken, lone_mesh())


@pytest.mark.parametrize("world", [1, 2])
def test_the_checkpoint_that_is_named_gives_a_loss_that_is_a_number(
    world: int, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    """The weights after step 7 were being saved when they turned out to be no good."""
    good = job(tmp_path, seed, steps=6, checkpoint_every=1, keep_checkpoints=1)
    run(good, lone_mesh())
    broken = replace(good, steps=STEPS, optimizer=EXPLODING, step=StepSettings(clip_norm=None))
    for message in ranks.run(world, _stopped, MeshShape(world, 1), broken):
        assert re.search(r"of step 7 .*; the newest complete checkpoint is step-00000006$", message), message
    assert [path.name for path in good.checkpoints.iterdir()] == ["step-00000006"]
    run(replace(good, steps=8), lone_mesh())
    assert all(np.isfinite(loss) for _, loss, _ in curve(tmp_path))


def test_a_checkpoint_whose_first_loss_is_no_number_is_not_named_as_good(tmp_path: Path, seed: int) -> None:
    """It was the last of its run: no loss was made of its weights."""
    run(job(tmp_path, seed, steps=6), lone_mesh())
    broken = job(tmp_path, seed, steps=7, optimizer=EXPLODING, step=StepSettings(clip_norm=None))
    run(broken, lone_mesh())
    message = _stopped(0, MeshShape(1, 1), replace(broken, steps=8))
    assert "its weights are those of step-00000007, the newest complete checkpoint" in message
    assert "the next older is step-00000006, which is used once step-00000007 is moved away" in message
    (tmp_path / "run" / "checkpoints" / "step-00000007").rename(tmp_path / "aside")
    run(job(tmp_path, seed), lone_mesh())
    assert curve(tmp_path)[-1][0] == STEPS


def _stopped(rank: int, shape: MeshShape, what: Job) -> str:
    try:
        run(what, make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh())
    except TrainingStopped as error:
        return str(error)
    return "it ran to its end"


@pytest.mark.parametrize("shape", [MeshShape(2, 1), MeshShape(2, 2)], ids=["2x1", "2x2"])
def test_a_run_begins_with_the_weights_of_a_checkpoint(
    shape: MeshShape, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    """Its first loss is what transformers computes; and ranks that read only their experts make the same steps."""
    theirs = make_checkpoint(
        tmp_path / "model", seed=seed, num_experts=4, vocab_size=CONFIG.vocab_size, with_tokenizer=False
    )
    changes: dict[str, Any] = {
        "config": read_config(tmp_path / "model"),
        "start_from": tmp_path / "model",
        "separate_documents": False,
        "steps": 4,
    }
    alone, together = job(tmp_path / "alone", seed, **changes), job(tmp_path / "together", seed, **changes)
    run(alone, lone_mesh())
    ranks.run(shape.world, rank, shape, together)
    assert_same_curve(tmp_path / "alone", tmp_path / "together")
    data = PackedData(TokenStore.open(alone.store), alone.sequence_length, separate_documents=False)
    batch = data.batch(SampleOrder(data.num_samples, seed).batch(Cursor(0), alone.batch, 0, 1))
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(batch.ids_BL)).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels_BL).flatten(), ignore_index=-1)
    assert curve(tmp_path / "alone")[0][1] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("world", "backend"), [(1, "cpu:gloo,cuda:gloo"), (2, "cpu:gloo,cuda:gloo"), (2, "cpu:gloo")])
def test_a_run_saves_and_goes_on_whatever_else_its_ranks_exchange_over(
    world: int, backend: str, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    """As with GPUs, but for NCCL; a group for CUDA alone cannot save, not even that of a single rank."""
    whole, broken, shape = tmp_path / "whole", tmp_path / "broken", MeshShape(world, 1)
    run(job(whole, seed), lone_mesh())
    ranks.run(world, _until, shape, job(broken, seed), 7, backend=backend)
    ranks.run(world, rank, shape, job(broken, seed), backend=backend)
    assert_same_curve(whole, broken)


def test_storage_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path: Path, seed: int) -> None:
    made = job(tmp_path, seed)
    made.folder.write_text("a file where a folder is to be")
    with pytest.raises(CheckpointError, match=r"run/checkpoints cannot be written: .*; give another `storage`"):
        run(made, lone_mesh())


@pytest.mark.parametrize(
    ("room", "every", "what"),
    [
        (60_000, 2, r"checkpoint step-\d+ cannot be written in .*: rank \d: .*File too large.*"),
        (4_000, STEPS, r"the metrics in .* cannot be written: File too large.*"),
        (1_000, STEPS, r"the metrics in .* cannot be written: File too large.*"),
    ],
    ids=["checkpoint", "metrics", "metrics at once"],
)
def test_storage_that_takes_no_more_ends_the_run_and_loses_nothing(
    room: int, every: int, what: str, ranks: Ranks, tmp_path: Path, seed: int
) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    run(job(whole, seed), lone_mesh())
    often = job(short, seed, checkpoint_every=2)
    ranks.run(1, _until, MeshShape(1, 1), often, 7)
    before = complete_checkpoints(often.checkpoints)
    (message,) = ranks.run(1, _with_room, room, replace(often, checkpoint_every=every))
    newest = before[0].name
    assert re.search(f"{what}make room there, .* start the run again.* {newest}", message), message
    assert complete_checkpoints(often.checkpoints) == before
    assert not list(often.checkpoints.glob("*.partial")), "what was half written is gone"
    run(often, lone_mesh())
    assert_same_curve(whole, short)


def test_one_of_two_ranks_that_cannot_write_is_named_by_both(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    made = job(tmp_path, seed, steps=4, checkpoint_every=4)
    messages = ranks.run(2, _second_without_room, made)
    for message in messages:
        assert re.search(
            r"step-00000004 cannot be written in .*: rank 1: .*File too large.* there is no checkpoint yet", message
        )
    assert not list(made.checkpoints.iterdir())


def _second_without_room(rank: int, what: Job) -> str:
    mesh = make_mesh(MeshShape(2, 1), torch.device("cpu"))
    return _with_room(rank, 8_000, what, mesh) if rank == 1 else _ends(what, mesh)


def test_a_storage_without_room_for_a_checkpoint_is_named_at_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(tmp_path, seed, steps=4)
    run(made, lone_mesh())
    (directory, *_) = complete_checkpoints(made.checkpoints)
    taken = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=taken * 9, free=taken // 2))
    with pytest.raises(
        CheckpointError, match=r"has [\d.]+ MB free, and a checkpoint takes ([\d.]+) MB; make room"
    ) as raised:
        run(replace(made, steps=8), lone_mesh())
    said = re.search(r"takes ([\d.]+) MB", str(raised.value))
    assert said is not None
    run(made, lone_mesh())  # a run that has reached its end writes no more
    assert float(said[1]) == pytest.approx(taken / 1e6, rel=0.3)  # of small tensors their headers are more


def _with_room(rank: int, room: int, what: Job, mesh: Mesh | None = None) -> str:
    with files_of_at_most(room):
        return _ends(what, mesh or lone_mesh())


def _ends(what: Job, mesh: Mesh) -> str:
    try:
        run(what, mesh)
    except CheckpointError as error:
        return str(error)
    return "it ran to its end"


def test_a_run_of_another_model_is_not_gone_on_with(tmp_path: Path, seed: int) -> None:
    run(job(tmp_path, seed, steps=2), lone_mesh())
    with pytest.raises(CheckpointError, match=r"another model: ffn_size 24 \(now 32\)"):
        run(job(tmp_path, seed, config=replace(CONFIG, ffn_size=32)), lone_mesh())


def test_all_ranks_find_a_damaged_checkpoint(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    """One that ended by itself would leave the others waiting for it."""
    made = job(tmp_path, seed, steps=2)
    run(made, lone_mesh())
    (newest, *_) = complete_checkpoints(made.checkpoints)
    (newest / "progress.json").write_text("{")
    said = ranks.run(2, _finds_damage, made)
    assert [words.partition(" is no complete checkpoint")[0] for words in said] == [str(newest)] * 2


def _finds_damage(rank: int, what: Job) -> str:
    with pytest.raises(DamagedCheckpoint, match="once step-00000002 is moved away") as caught:
        run(what, make_mesh(MeshShape(2, 1), torch.device("cpu")))
    return str(caught.value)


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, seed: int) -> None:
    run(job(tmp_path, seed, steps=2), lone_mesh())
    for changes in ({"sequence_length": 6}, {"separate_documents": False}, {"seed": seed + 1}):
        with pytest.raises(OtherRun, match="was made from other data"):
            run(replace(job(tmp_path, seed), **changes), lone_mesh())


@pytest.mark.parametrize(
    ("before", "after", "lacking"),
    [
        ({"name": "sgd"}, {}, "exp_avg, exp_avg_sq, step"),
        ({"name": "sgd"}, {"name": "sgd", "momentum": 0.9}, "momentum_buffer"),
        ({}, {"name": "sgd", "momentum": 0.9}, "momentum_buffer"),
    ],
)
def test_another_optimizer_is_no_damage(
    before: dict[str, Any], after: dict[str, Any], lacking: str, tmp_path: Path, seed: int
) -> None:
    """No checkpoint is to be moved away for it: the next older would do no better."""
    rates: dict[str, Any] = {"peak_lr": 0.01, "final_lr": 0.01, "warmup_steps": 0}
    made = job(tmp_path, seed, steps=2, optimizer=OptimizerSpec(**rates, **before))
    run(made, lone_mesh())
    with pytest.raises(OtherRun, match=f"was made with another optimizer: it has no {lacking}; give") as caught:
        run(replace(made, steps=4, optimizer=OptimizerSpec(**rates, **after)), lone_mesh())
    assert "moved away" not in str(caught.value)


def test_noise_in_the_gates_is_the_same_when_a_step_is_made_again(tmp_path: Path) -> None:
    seed = 20260101  # larger than fits beside a step
    noisy = StepSettings(jitter=0.3, seed=seed)
    for name in ("one", "two"):
        run(job(tmp_path / name, seed, step=noisy, steps=4), lone_mesh())
    run(job(tmp_path / "none", seed, step=StepSettings(), steps=4), lone_mesh())
    assert curve(tmp_path / "one") == curve(tmp_path / "two") != curve(tmp_path / "none")


def test_evaluation_is_without_noise(tmp_path: Path, seed: int) -> None:
    """With a learning rate that moves no weight, noise is all that can change a loss."""
    still: dict[str, Any] = {"optimizer": constant_rate(1e-30), "evaluate_every": 1, "steps": 3}
    for name, jitter in (("noisy", 0.5), ("plain", 0.0)):
        run(job(tmp_path / name, seed, step=StepSettings(jitter=jitter), **still), lone_mesh())
    noisy, plain = curve(tmp_path / "noisy"), curve(tmp_path / "plain")
    assert all(loss != loss_too for (_, loss, _), (_, loss_too, _) in zip(noisy, plain, strict=True))
    held_out = {value for _, _, value in [*noisy, *plain]}
    assert len(held_out) == 1


def constant_rate(rate: float) -> OptimizerSpec:
    return OptimizerSpec(peak_lr=rate, final_lr=rate, warmup_steps=0)


@pytest.mark.parametrize("world", [1, 2])
def test_every_copy_is_kept_or_dropped(world: int, ranks: Ranks, tmp_path: Path, seed: int) -> None:
    """The kept ones are counted where they are put into buffers, not from those that were dropped."""
    made = job(tmp_path, seed, step=StepSettings(capacity_factor=0.7), steps=4)
    kept = np.sum(ranks.run(world, _kept, MeshShape(world, 1), made), axis=0).reshape(4, CONFIG.num_layers)
    records = read_metrics(made.folder)
    (events,) = (made.folder / "tensorboard").iterdir()
    for layer in range(CONFIG.num_layers):
        dropped = [one["dropped_per_layer"][layer] for one in records]
        assert sum(dropped) > 0
        assert list(kept[:, layer] + dropped) == [made.batch * made.sequence_length * CONFIG.top_k] * 4
        assert list(board(events, f"layer {layer}/dropped copies").values()) == dropped


def _kept(rank: int, shape: MeshShape, what: Job) -> list[int]:
    """The copies that this rank put into buffers, for each step and layer."""
    from training import moe

    kept: list[int] = []
    before = moe.dispatch_to_capacity

    def counted(*args: Any) -> Any:
        sent_ECD, plan = before(*args)
        kept.append(len(set(plan.slots_M.tolist())))
        return sent_ECD, plan

    moe.dispatch_to_capacity = counted
    try:
        run(what, make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh())
    finally:
        moe.dispatch_to_capacity = before
    return kept


@pytest.mark.parametrize(("layers", "experts", "tags"), [(64, 8, 512), (65, 8, 8), (2, 300, 300)])
def test_a_large_model_has_no_more_charts_than_can_be_looked_at(
    layers: int, experts: int, tags: int, tmp_path: Path
) -> None:
    log = MetricsLog(tmp_path, 0)
    rows = [[100 * layer + expert for expert in range(experts)] for layer in range(layers)]
    log.add(Record(1, 3.0, 1.0, 0.1, 1.0, 1e-3, 1000.0, 8, rows, [0] * layers, None, 1, 1))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    found = {tag: value for tag, value in all_scalars(events) if "copies for expert" in tag}
    assert len(found) == tags
    if tags < layers * experts:
        assert found["all layers/copies for expert 3"] == sum(one[3] for one in rows)


def test_a_follower_reads_each_step_once(tmp_path: Path, seed: int) -> None:
    follower = Follower(tmp_path / "run")
    run(job(tmp_path, seed, steps=5), lone_mesh())
    assert [one["step"] for one in follower.read()] == [1, 2, 3, 4, 5]
    assert follower.read() == []
    log = MetricsLog(tmp_path / "run", 3)  # as after a failure: steps 4 and 5 are made again
    log.close()
    assert follower.read() == []
    run(job(tmp_path, seed, steps=8), lone_mesh())
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert [one["step"] for one in follower.read()] == [6, 7, 8]
    assert Follower(tmp_path / "run").read() == []


def test_metrics_are_whole_lines(tmp_path: Path, seed: int) -> None:
    run(job(tmp_path, seed, steps=2), lone_mesh())
    path = tmp_path / "run" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "lo')  # it is being written
    assert [one["step"] for one in read_metrics(tmp_path / "run")] == [1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines()[:2])
