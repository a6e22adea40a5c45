"""What a service's processes hold, over time: memory and descriptors of those that stay."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.census import Process

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """One process's resident memory in MiB and open descriptors, at each look."""

    kind: str
    pid: int
    memory_mib: tuple[float, ...]
    descriptors: tuple[int, ...]


class Footprints:
    """Looks at processes of this host, now and then."""

    def __init__(self) -> None:
        self._looks: list[dict[Process, tuple[float, int]]] = []

    def take(self, processes: Iterable[Process]) -> None:
        """Looks once at each of them; those of other hosts, or that have just ended, are left out."""
        seen = ((process, held(process.pid)) for process in processes)
        self._looks.append({process: held for process, held in seen if held is not None})

    def survivors(self) -> list[Footprint]:
        """The processes that every look found."""
        if not self._looks:
            return []
        everywhere = [process for process in self._looks[0] if all(process in look for look in self._looks)]
        return [
            Footprint(
                process.kind,
                process.pid,
                tuple(look[process][0] for look in self._looks),
                tuple(look[process][1] for look in self._looks),
            )
            for process in sorted(everywhere, key=lambda one: (one.kind, one.pid))
        ]


def held(pid: int) -> tuple[float, int] | None:
    """Resident memory in MiB and the number of open descriptors of a process; None: it has ended, or is not ours."""
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB, len(os.listdir(folder / "fd"))
    except OSError:
        return None
