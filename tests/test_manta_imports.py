"""Packages of our names in other places do not get in the way, however they come first on the path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manta_imports import PACKAGES, ROOT, shadows

LOADED = (
    "import sys, cluster.app, manta.cli, training.spec\n"
    f"wrong = [name for name in {PACKAGES!r} if name in sys.modules and {ROOT!r} not in sys.modules[name].__file__]\n"
    "sys.exit(', '.join(wrong) or None)"
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with packages, modules and mere folders of our names, but `manta` and `cluster`, which come first."""
    make_others(tmp_path, [name for name in PACKAGES if name not in ("manta", "cluster")])
    return tmp_path


def make_others(folder: Path, names: list[str]) -> None:
    """Makes a package, a module or a folder of each name, in turn; none of them can be imported."""
    for number, name in enumerate(names):
        if number % 3 == 0:
            (folder / f"{name}.py").write_text("raise ImportError('theirs')\n")
            continue
        (folder / name).mkdir()
        if number % 3 == 1:
            (folder / name / "__init__.py").write_text("raise ImportError('theirs')\n")


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_from_a_folder_with_others_of_our_names(elsewhere: Path) -> None:
    done = run(LOADED, elsewhere)
    assert (done.returncode, done.stderr) == (0, "")


def test_with_others_on_pythonpath(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run(LOADED, tmp_path_factory.mktemp("empty"), PYTHONPATH=str(elsewhere))
    assert (done.returncode, done.stderr) == (0, "")


def test_training_as_a_module(tmp_path: Path) -> None:
    """Python finds `training` in the current folder first, and would run another one that is there."""
    make_others(tmp_path, [name for name in PACKAGES if name != "training"])
    done = run(
        "import runpy, sys; sys.argv = ['training']; runpy.run_module('training', run_name='__main__')", tmp_path
    )
    assert done.stderr == "usage: python -m training FILE.yaml\n"


def test_files_that_are_links_into_the_store_of_an_installer(tmp_path: Path) -> None:
    """As `uv pip install --link-mode symlink` makes them: the folders are real."""
    for file in (Path(ROOT) / name for name in ("manta_imports.py", "manta/__init__.py", "spec/__init__.py")):
        link = tmp_path / file.relative_to(ROOT)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(file)
    done = run("import manta, spec; print(manta.__file__, spec.__file__)", tmp_path)
    assert (done.stdout, done.stderr) == (f"{tmp_path}/manta/__init__.py {tmp_path}/spec/__init__.py\n", "")


def test_somebody_else_s_that_is_imported_already_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    done = run("import model, manta.cli", tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ImportError: model was imported from {tmp_path}, and Manta has a package of that name, in")


def test_what_shadows_ours(elsewhere: Path) -> None:
    found = shadows([str(elsewhere)])
    assert found == dict.fromkeys(set(PACKAGES) - {"manta", "cluster"}, str(elsewhere))
    assert shadows([ROOT, str(elsewhere)]) == {}
    packages = {name for name in found if not (elsewhere / name).is_dir() or list((elsewhere / name).iterdir())}
    assert shadows([str(elsewhere), ROOT]).keys() == packages, "mere folders come after packages"
    assert shadows([]) == {}
