"""Manta works wherever it is started: beside folders of its packages' names, by a script, from an installed wheel."""

import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from manta_imports import PACKAGES
from tests.integration.ray_head import Head, started_head
from tests.integration.ray_service import free_port
from tests.integration.test_ray_command import SCRIPT, Command, manta
from tests.integration.training_runs import spec_of, write_files
from tests.test_manta_imports import make_others

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
DEAD = "127.0.0.1:1"  # nothing listens there
STOP_S = 60.0


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with packages, modules and folders of all our names but `manta`, which it is started by."""
    folder = tmp_path / "project"
    folder.mkdir()
    make_others(folder, [name for name in PACKAGES if name != "manta"])
    return folder


def serves(command: Command, port: int) -> None:
    """Waits until it serves, asks for something, and ends it as a script does."""
    command.wait_for("Ready in")
    body = {"model": "demo", "prompt": "def ", "max_tokens": 3, "ignore_eos": True}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60, trust_env=False)
    assert answer.json()["usage"]["completion_tokens"] == 3
    command.send(signal.SIGTERM)
    command.ends_with(0)
    assert command.output.rstrip().endswith("Stopped.")


def test_a_script_serves_from_a_folder_with_others_of_our_names(elsewhere: Path, tmp_path: Path) -> None:
    """Nor does an address of some other Ray, which is gone, lead it astray."""
    port = free_port()
    args = ("serve", "demo", "--port", str(port))
    with manta(tmp_path, *args, started_by=SCRIPT, folder=elsewhere, RAY_ADDRESS=DEAD) as command:
        serves(command, port)


@pytest.mark.full
def test_others_on_pythonpath(elsewhere: Path, tmp_path: Path) -> None:
    port = free_port()
    with manta(tmp_path, "serve", "demo", "--port", str(port), PYTHONPATH=str(elsewhere)) as command:
        serves(command, port)


def training_file(tmp_path: Path, steps: int) -> str:
    write_files(tmp_path)
    spec = spec_of(tmp_path, "elsewhere", schedule={"steps": steps})
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return str(path)


@pytest.mark.full
def test_a_script_trains_from_a_folder_with_others_of_our_names(elsewhere: Path, tmp_path: Path) -> None:
    """Data are read by tasks of Ray Data, weights are trained by two workers of Ray Train."""
    file = training_file(tmp_path, 3)
    with manta(tmp_path, "train", file, started_by=SCRIPT, folder=elsewhere, RAY_ADDRESS=DEAD) as command:
        command.wait_for("Done: 3 steps")
        command.ends_with(0)


@pytest.mark.full
@pytest.mark.parametrize("stage", ["reading:", "data:", "step "])
def test_a_script_ends_a_training_run_with_sigterm(tmp_path: Path, stage: str) -> None:
    with manta(tmp_path, "train", training_file(tmp_path, 100_000), started_by=SCRIPT) as command:
        command.wait_for(stage)
        command.send(signal.SIGTERM)
        command.ends_with(130)
        assert "Traceback" not in command.output, command.output


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A Ray that was started in a folder without anything."""
    with started_head(tmp_path, PYTHONPATH="") as made:
        made.run("serve", "start", "--http-port", str(made.port))
        yield made


@pytest.mark.full
def test_serve_run_from_a_folder_with_others_of_our_names(head: Head, elsewhere: Path) -> None:
    """All but `cluster`, which `serve run` is told to import from there."""
    (elsewhere / "cluster.py").unlink(missing_ok=True)
    shutil.rmtree(elsewhere / "cluster", ignore_errors=True)
    there = Head(elsewhere, head.environment, head.mark, head.port)
    command = there.start("serve", "run", "cluster.app:build", "model=demo", "limits.orphan_timeout_s=3")
    there.wait_healthy()
    answer: dict[str, Any] = there.completion({"model": "demo", "prompt": "def ", "max_tokens": 3, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 3
    command.send_signal(signal.SIGTERM)
    command.wait(STOP_S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with a wheel of Manta; everything else is that of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    ours = [*PACKAGES, *(f"{name}.py" for name in project["py-modules"]), "pyproject.toml", "README.md", "LICENSE"]
    for name in ours:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=300, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(packages), str(wheel)], check=True, timeout=300
    )
    # What pip does for everything else: the folders of this environment, but for those that hold Manta's sources.
    others = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return folder / "env" / "bin" / "python"


@pytest.mark.full
def test_an_installed_wheel_serves_from_there(installed: Path, elsewhere: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [installed, "-c", "import cluster; print(cluster.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(installed.parents[1]), "it is the wheel's, not the sources'"
    port = free_port()
    args = ("serve", "demo", "--port", str(port))
    with manta(tmp_path, *args, started_by=SCRIPT, folder=elsewhere, python=installed) as command:
        serves(command, port)
