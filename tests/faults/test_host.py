"""A host is removed with everything on it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracle import Oracle

TIMEOUT_S = 300


@pytest.mark.full
@pytest.mark.hosts
def test_a_host_is_removed(checkpoint: tuple[Path, Oracle], seed: int) -> None:
    """In a process of its own, which has a Ray cluster of three fake hosts: this session's is left alone."""
    command = [sys.executable, "-m", "tests.faults.host_loss", str(checkpoint[0]), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "replaced elsewhere" in done.stdout
