"""Processes by a mark in their environment, which all that they start inherit, whoever their parent is later."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.integration.ray_service import alive

MARK = "MANTA_TEST_RUN"


def new_mark() -> str:
    """A mark that no other run has, for MARK."""
    return f"{os.getpid()}-{time.monotonic_ns()}"


def marked(mark: str) -> dict[int, str]:
    """The processes with this mark that live: their command lines."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            environment = (path / "environ").read_bytes() if path.name.isdecimal() else b""
            if f"{MARK}={mark}".encode() in environment.split(b"\0") and alive(int(path.name)):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()[:400]
        except OSError:
            continue  # it has ended, or is another user's
    return found


def kill_marked(mark: str) -> None:
    """Ends what has this mark, at once."""
    for pid in marked(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
