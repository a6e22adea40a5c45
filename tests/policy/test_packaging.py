"""pyproject.toml, constraints.txt and the folders agree, and nothing in the project ties it to one machine."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

import manta
from manta_imports import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EVERYTHING = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
OURS = {*PROJECT["tool"]["importlinter"]["root_packages"], *PROJECT["tool"]["setuptools"]["py-modules"]}
INSTALLED = packages_distributions()  # what brings a module, by its top-level name
TEXT_SUFFIXES = {".cfg", ".json", ".md", ".proto", ".py", ".pyi", ".sh", ".toml", ".txt", ".yaml", ".yml"}
NOT_OURS = {".venv", ".git", "build", "dist", "results", "node_modules"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): wanted for name, wanted in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(wanted: Sequence[str] = EVERYTHING) -> list[str]:
    return [canonical(re.split(r"[\[<>=!~ ]", requirement)[0]) for requirement in wanted]


def texts() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        ours = not NOT_OURS.intersection(parts) and not any(part.endswith((".egg-info", "_cache")) for part in parts)
        if ours and path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name in {"Makefile", "run"}):
            yield path


def test_every_package_is_listed_and_every_listed_package_exists() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in listed)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    below = {
        f"{path.parent.parent.name}.{path.parent.name}" for name in found for path in ROOT.glob(f"{name}/*/__init__.py")
    }
    assert found | below == listed
    assert found == set(PROJECT["tool"]["importlinter"]["root_packages"])
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    assert found | modules == set(PROJECT["tool"]["basedpyright"]["include"])
    assert {path.name for path in ROOT.glob("*.py")} == modules
    assert found == set(PACKAGES)


def test_every_package_finds_its_own_kind_first() -> None:
    """Whichever of them is imported first: see manta_imports.py."""
    for name in PACKAGES:
        tree = ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8"))
        first = next(node for node in tree.body if not isinstance(node, ast.Expr))  # after the docstring
        assert isinstance(first, ast.Import), name
        assert [alias.name for alias in first.names] == ["manta_imports"], name


def test_every_dependency_is_pinned() -> None:
    assert [name for name in requirements() if name not in pins()] == []


def test_everything_that_is_imported_is_declared() -> None:
    """Not only installed: because something else needs it today, or by hand."""
    run = PROJECT["project"]["dependencies"]
    allowed = {name: requirements(run) for name in PROJECT["tool"]["importlinter"]["root_packages"]}
    allowed["benchmarks"] = requirements()  # what servers and transports are compared with
    undeclared = {
        f"{path.relative_to(ROOT)} imports {module}"
        for folder, names in allowed.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module in imported(path) - OURS - sys.stdlib_module_names
        if not {canonical(each) for each in INSTALLED.get(module, ())}.intersection(names)
    }
    assert undeclared == set(), "name it in pyproject.toml and pin it in constraints.txt"


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports anywhere in it, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_the_pins_are_what_is_tested() -> None:
    wanted = {name: pins()[name] for name in requirements()}
    found = {name: version(name).split("+")[0] for name in requirements()}
    assert found == wanted, "run `make install`, or pin what was tested"


def test_torch_is_the_tested_one() -> None:
    assert pins()["torch"] == "2.13.0"


def test_the_installed_version_is_the_sources() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", manta.__version__)
    assert f"[{manta.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?<![\w.])/(?:wor[k]|roo[t]|hom[e]/\w+)/", "a path of one machine"),
        (r"--(?:extra-)?index-ur[l]|--find-link[s]|pypi\.or[g]|download\.pytorc[h]\.org", "a package index"),
    ],
)
def test_no_file_names(pattern: str, why: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == [], why


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
