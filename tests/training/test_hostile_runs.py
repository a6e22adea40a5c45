"""Run folders from elsewhere: whatever their files say, no code of theirs runs, nor is memory theirs for the asking."""

import json
import os
import pickle
import resource
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray
from typer.testing import CliRunner

from manta.cli import app
from tests.training.ranks import Ranks
from tests.training.small_data import make_store, make_tokenizer
from tests.training.test_loop import job
from training.data_errors import SourceError
from training.export import TOKENIZER_FOLDER, config_of, exported, find_checkpoint
from training.loop import Job, run
from training.manifest import MANIFEST_FILE
from training.mesh import MeshShape, lone_mesh, make_mesh
from training.metrics import METRICS_FILE, Follower, MetricsError, read_metrics
from training.parquet import row_group_bytes
from training.progress import PROGRESS_FILE, CheckpointError, DamagedCheckpoint
from training.sources import Source
from training.trainer import _follow  # pyright: ignore[reportPrivateUsage] - as a thread runs it

ROOM_BYTES = 2 << 30  # of addresses, on top of what the process has


class Runs:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one checkpoint."""
    what = job(tmp_path_factory.mktemp("trained"), 7, steps=2, checkpoint_every=2)
    make_tokenizer(what.folder / TOKENIZER_FOLDER)
    run(replace(what, dtype="float32"), lone_mesh())
    return what.folder


def checkpoint_of(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000002"


@pytest.mark.parametrize("file_format", [1, 2], ids=["as the pickled format", "as today's"])
def test_no_code_of_a_run_folder_runs(file_format: int, tmp_path: Path, seed: int) -> None:
    """Neither when it is exported nor when a run goes on from it."""
    mark, bomb = tmp_path / "ran", pickle.dumps(Runs(tmp_path / "ran"))
    what = job(tmp_path, seed, steps=2, checkpoint_every=2)
    run(what, lone_mesh())
    directory = checkpoint_of(what.folder)
    said = json.loads((directory / PROGRESS_FILE).read_text())
    (directory / PROGRESS_FILE).write_text(json.dumps({**said, "format": file_format}))
    for name in (".metadata", "__0_0.distcp", MANIFEST_FILE, *(path.name for path in directory.glob("*.safetensors"))):
        (directory / name).write_bytes(bomb)
    refused = CliRunner().invoke(app, ["export", str(what.folder), str(tmp_path / "out")])
    assert refused.exit_code != 0
    with pytest.raises(DamagedCheckpoint, match="step-00000002 (was written|is no complete)") as caught:
        run(replace(what, steps=4), lone_mesh())
    assert ("export it with the version that wrote it" in str(caught.value)) == (file_format == 1)
    assert not mark.exists()
    pickle.loads(bomb)  # noqa: S301 - what the files hold does run
    assert mark.exists()


@contextmanager
def little_room() -> Generator[None]:
    """Inside, an allocation of gigabytes fails, where it would else only be seen in what the machine has left."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


SHAPES = [1 << 40, 512]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("parameters.embedding", {"dtype": "F32", "shape": SHAPES, "parts": [{"start": 0, "stop": 1 << 40}]}),
        ("parameters.embedding", {"dtype": "F32", "shape": [1 << 60], "parts": [{"start": 0, "stop": 1 << 60}]}),
        ("parameters.embedding", {"dtype": "F32", "shape": [-1], "parts": []}),
        ("parameters.final_norm", {"dtype": "F32", "shape": [12], "parts": [{"start": 0, "stop": 6}]}),
        ("parameters.final_norm", {"dtype": "F32", "shape": [12], "parts": [{"start": 0, "stop": 12, "file": "/x"}]}),
    ],
)
def test_sizes_that_files_do_not_have_make_no_memory(name: str, said: Any, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    path = checkpoint_of(folder) / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    file = manifest["tensors"][name]["parts"][0]["file"]
    said = {**said, "parts": [{"file": file, **part} for part in said["parts"]]}
    path.write_text(json.dumps({"tensors": {**manifest["tensors"], name: said}}))
    with little_room(), pytest.raises(CheckpointError):
        export_all(folder)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_manifest_that_is_no_file_is_not_waited_for(
    make: Callable[[Path], None], trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    (checkpoint_of(folder) / MANIFEST_FILE).unlink()
    make(checkpoint_of(folder) / MANIFEST_FILE)
    with pytest.raises(DamagedCheckpoint, match=f"{MANIFEST_FILE} is a folder, a pipe or a device, and no file"):
        find_checkpoint(folder, None)


def test_a_manifest_of_gigabytes_is_not_read(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    for name in (MANIFEST_FILE, PROGRESS_FILE):
        with (checkpoint_of(folder) / name).open("ab") as file:
            file.truncate(8 << 30)
        with little_room(), pytest.raises(DamagedCheckpoint, match=rf"{name} has more than \d+ bytes"):
            export_all(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_its_json_says_is_a_checkpoint_or_is_refused(data: st.DataObject, trained: Path) -> None:
    directory = checkpoint_of(trained)
    name = data.draw(st.sampled_from([MANIFEST_FILE, PROGRESS_FILE]))
    text = (directory / name).read_text()
    try:
        (directory / name).write_text(json.dumps(changed(json.loads(text), data)))
        export_all(trained)
    except CheckpointError:
        pass
    finally:
        (directory / name).write_text(text)


def changed(value: Any, data: st.DataObject) -> Any:
    """The same but for one place of it."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        kept = {other: each for other, each in value.items() if other != key}
        return kept if not data.draw(st.integers(0, 9)) else {**kept, key: changed(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [changed(each, data) if index == place else each for index, each in enumerate(value)]
    return data.draw(JSON)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_bytes_its_tensors_are_they_are_read_or_refused(data: st.DataObject, trained: Path) -> None:
    path = next(checkpoint_of(trained).glob("*.safetensors"))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1) | st.integers(0, 7))
    try:
        path.write_bytes(whole[:at] + data.draw(st.binary(min_size=0, max_size=9)) + whole[at + 1 :])
        export_all(trained)
    except CheckpointError:
        pass
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": "x"}', "\0" * 9, "1" * (1 << 25)])
def test_metrics_that_no_run_has_written_are_named(line: str, tmp_path: Path, seed: int) -> None:
    what = job(tmp_path, seed, steps=2, checkpoint_every=2)
    what.folder.mkdir(parents=True)
    (what.folder / METRICS_FILE).write_text(line + "\n")
    with pytest.raises(DamagedCheckpoint, match=r"metrics.jsonl: the line that ends at byte \d+ is none of a run's"):
        run(what, lone_mesh())
    with pytest.raises(MetricsError):
        Follower(what.folder)


def test_all_ranks_end_if_the_first_finds_the_metrics_damaged(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    """The others would wait for it in their first step, and the run would be tried again to the same end."""
    what = job(tmp_path, seed, steps=2)
    what.folder.mkdir(parents=True)
    (what.folder / METRICS_FILE).write_text("{\n")
    for message in ranks.run(2, _damage, what):
        assert "the metrics in" in message or "none of a run's metrics; move the file away" in message


def _damage(rank: int, what: Job) -> str:
    try:
        run(what, make_mesh(MeshShape(2, 1), torch.device("cpu")))
    except DamagedCheckpoint as error:
        return str(error)
    return "it ran to its end"


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing", "folder", "device"])
def test_metrics_that_are_no_file_are_neither_waited_for_nor_written_through(
    kind: str, tmp_path: Path, seed: int
) -> None:
    what = job(tmp_path / "run", seed, steps=2)
    what.folder.mkdir(parents=True)
    other, path = tmp_path / "other", what.folder / METRICS_FILE
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        if kind == "link":
            other.write_text("kept")
        path.symlink_to("/dev/zero" if kind == "device" else other)
    for read in (lambda: read_metrics(what.folder), lambda: Follower(what.folder)):
        with pytest.raises(MetricsError, match="is a link, a folder, a pipe or a device, and no file of a run's; move"):
            read()
    with pytest.raises(DamagedCheckpoint, match="is a link, a folder, a pipe or a device"):
        run(what, lone_mesh())
    assert other.read_text() == "kept" if kind == "link" else not other.exists()


def test_what_a_run_writes_is_not_written_through_links(tmp_path: Path, seed: int) -> None:
    """Whoever goes on with somebody else's run would write over files of its own."""
    what, other = job(tmp_path / "run", seed, steps=2, checkpoint_every=2), tmp_path / "other"
    (what.folder / "checkpoints").mkdir(parents=True)
    (what.folder / METRICS_FILE).touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (what.folder / "checkpoints" / "step-00000002.partial").symlink_to(folder)
    other.write_text("kept")
    (what.folder / METRICS_FILE).with_suffix(".partial").symlink_to(other)
    run(what, lone_mesh())
    assert len(read_metrics(what.folder)) == 2
    assert (other.read_text(), list(folder.iterdir())) == ("kept", [])
    store = tmp_path / "store"
    store.mkdir()
    for name in ("tokens.bin", "offsets.bin", "tasks.bin", "store.json", "store.json.partial"):
        (store / name).symlink_to(other)
    assert make_store(store, [[5, 6, 1]], tasks=["code"]).document(0).tolist() == [5, 6, 1]
    assert other.read_text() == "kept"


def test_a_damaged_log_is_followed_in_silence(tmp_path: Path) -> None:
    """Whoever follows it is a thread beside the run, whose own error says it."""
    (tmp_path / METRICS_FILE).write_text("{\n")
    told: list[object] = []
    _follow(tmp_path, told.append, threading.Event())
    assert told == []


def test_a_link_among_the_tokenizer_s_files_is_not_followed(trained: Path, tmp_path: Path) -> None:
    folder, secret = shutil.copytree(trained, tmp_path / "run"), tmp_path / "id_rsa"
    secret.write_text("private")
    (folder / TOKENIZER_FOLDER / "vocab.json").symlink_to(secret)
    refused = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "vocab.json is a link, which no run makes; replace it" in refused.stderr
    assert not (tmp_path / "out").exists()


def export_all(folder: Path) -> None:
    found = find_checkpoint(folder, None)
    for _, tensor in exported(found, config_of(found)):
        assert isinstance(tensor, torch.Tensor)


def test_what_ray_would_unpickle_in_a_parquet_file_is_no_text(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    objects = ArrowPythonObjectArray.from_objects([Runs(mark)])
    pq.write_table(pa.table({"text": objects, "kind": pa.array(["x"])}), tmp_path / "it.parquet")
    with pytest.raises(SourceError, match="column 'text' is of type .*, not text"):
        row_group_bytes(str(tmp_path / "it.parquet"), Source(str(tmp_path), column="text"))
    with pytest.raises(SourceError, match="column 'text' is of type .*, not text"):
        row_group_bytes(str(tmp_path / "it.parquet"), Source(str(tmp_path), column="kind", task_column="text"))
    assert not mark.exists()
