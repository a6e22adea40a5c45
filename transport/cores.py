"""How many cores a process may use: those of its host, or fewer in a container. Pure; reads what Linux tells."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

Quota = tuple[str, str]  # time that may be used, in each period, as Linux writes them


def available_cores(root: Path = Path("/")) -> int:
    """Returns how many cores this process may use: by its affinity and the CPU quotas of its control groups.

    Of a quota the whole cores count, 1 at least. Ray's own count knows no affinity, and of quotas only the outermost.

    Args:
        root: Where `proc` and `sys` are.
    """
    return max(1, int(min(len(os.sched_getaffinity(0)), *_limits(root), float("inf"))))


def _limits(root: Path) -> Iterator[float]:
    for spent, period in _quotas(root):
        if spent.isdecimal() and period.isdecimal() and int(period):  # else `max` or -1: there is no limit
            yield int(spent) / int(period)


def _quotas(root: Path) -> Iterator[Quota]:
    """Yields the quotas of this process's control groups and of those above them; versions 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for folder in _folders(root / "sys/fs/cgroup", path):
                spent, _, period = _read(folder / "cpu.max").partition(" ")
                yield spent, period
        elif "cpu" in controllers.split(","):
            for folder in _folders(root / "sys/fs/cgroup/cpu", path):
                yield _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")


def _folders(mounted: Path, path: str) -> Iterator[Path]:
    """Yields the folders of a group and of all above it; in a container the path may be one that only its host has."""
    inside = PurePosixPath(path.lstrip("/"))
    return (mounted / each for each in (inside, *inside.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
