"""What import-linter cannot say: which files may import Ray or torch, and what must start without them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manta_imports import PACKAGES

ROOT = Path(__file__).parents[2]
RAY_FILES = {"deployment.py", "actor.py"}  # in any role's folder: the shells around its pure code
RAY_FOLDERS = {"cluster", "benchmarks"}
RAY_PATHS = {
    Path("transport/ray.py"),
    Path("transport/hosts.py"),
    Path("transport/job.py"),
    Path("training/ingest.py"),
    Path("training/room.py"),
    Path("training/trainer.py"),
    Path("training/__main__.py"),
}


def sources(*folders: str) -> Iterator[Path]:
    """Our own modules, generated ones left out, relative to the root."""
    for folder in folders:
        paths = (path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py")))
        yield from (path for path in paths if not path.name.endswith("_pb2.py"))


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports anywhere in it, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_ray_is_imported_only_where_processes_are_made() -> None:
    strangers = [
        str(path)
        for path in sources(*PACKAGES)
        if "ray" in imported(path)
        and path.parts[0] not in RAY_FOLDERS
        and path.name not in RAY_FILES
        and path not in RAY_PATHS
    ]
    assert strangers == [], "Ray belongs in deployment.py, actor.py, the files named above, cluster/ and benchmarks/"


def test_the_gateway_and_the_configuration_do_without_torch() -> None:
    strangers = [str(path) for path in [*sources("serving"), Path("model/config.py")] if "torch" in imported(path)]
    assert strangers == [], "the gateway starts fast because these files never import torch"


@pytest.mark.parametrize("module", ["cluster.spec", "training.spec", "manta.cli", "manta.target", "model.config"])
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join({{'ray', 'torch', 'transformers'}} & set(sys.modules)) or None)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_rules_would_notice() -> None:
    assert "ray" not in imported(Path("manta/cli.py"))
    assert "pydantic" in imported(Path("cluster/spec_schema.py"))
