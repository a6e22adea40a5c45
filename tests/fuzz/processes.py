"""The processes of a service on this host, and the memory that they take, from /proc."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.remains import listeners

PARTS = ("ray::ServeReplica", "ray::ProxyActor", "ray::ExpertActor", "ray::Controller")
"""What the processes are called that a request goes through, or that watch over those."""
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class NoServiceError(Exception):
    """Nothing of Manta's listens there."""


def parts_at(port: int) -> dict[int, str]:
    """Process id -> name, of each part of the service that listens on a port of this host.

    Raises:
        NoServiceError: There is none, or it is of another user.
    """
    seen = list(_all())
    parents, names = {pid: parent for pid, parent, _ in seen}, {pid: name for pid, _, name in seen}
    pids = {one.pid for one in listeners(port)}
    while pids and not any(names.get(pid) == "raylet" for pid in pids):
        pids = {parents[pid] for pid in pids if pid in parents}
    found = {pid: _command(pid) for pid in names if pids & {pid, parents[pid]}}
    chosen = {pid: command for pid, command in found.items() if command.startswith(PARTS)}
    if not chosen:
        raise NoServiceError(f"no service on Ray, of this user, listens on port {port} of this host")
    return chosen


def _all() -> Iterator[tuple[int, int, str]]:
    """Process id, its parent's and its name, of each that there is."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (text := _read(folder / "stat")):
            name, rest = text.partition("(")[2].rsplit(")", 1)
            yield int(folder.name), int(rest.split()[1]), name


def _command(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


class Memory:
    """What some processes take, in MiB; of one that has ended, nothing is told."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = set(pids)

    def mark(self) -> dict[int, float]:
        """Forgets the peaks so far; returns what each process takes now."""
        for pid in self._pids:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended: `take_ended` tells
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        return self.now_mib()

    def now_mib(self) -> dict[int, float]:
        """What each takes now."""
        found = {pid: _read(Path(f"/proc/{pid}/statm")).split() for pid in self._pids}
        return {pid: int(words[1]) * PAGE_MIB for pid, words in found.items() if words}

    def grown_mib(self, before_mib: Mapping[int, float]) -> list[float]:
        """How much more than before each took at most since `mark`."""
        found = {pid: _read(Path(f"/proc/{pid}/status")).partition("VmHWM:")[2].split() for pid in self._pids}
        return [int(words[0]) / 1024 - before_mib[pid] for pid, words in found.items() if words and pid in before_mib]

    def take_ended(self) -> set[int]:
        """Those that have ended since this was asked last."""
        ended = {pid for pid in self._pids if not _command(pid)}
        self._pids -= ended
        return ended
