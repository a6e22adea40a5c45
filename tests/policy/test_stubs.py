"""The committed protobuf stubs are what `make protos` generates."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "protos").glob("*.proto"))
STUBS = sorted(path.name for pattern in ("*_pb2.py", "*_pb2.pyi") for path in (ROOT / "protos").glob(pattern))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={target}", f"--pyi_out={target}"]
    done = subprocess.run([*command, *PROTOS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return target / "protos"


def test_every_contract_has_its_stubs_and_no_stub_lacks_its_contract(generated: Path) -> None:
    assert sorted(path.name for path in generated.iterdir()) == STUBS


@pytest.mark.parametrize("name", STUBS)
def test_generating_again_changes_nothing(generated: Path, name: str) -> None:
    committed = (ROOT / "protos" / name).read_text(encoding="utf-8")
    assert (generated / name).read_text(encoding="utf-8") == committed, "run `make protos`"


def test_make_protos_names_every_contract() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(proto in makefile for proto in PROTOS)
