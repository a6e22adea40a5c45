"""What a service holds: sequences, cache, memory and descriptors; and what of it is left when clients are gone."""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Server, ServerError, open_session
from benchmarks.faults.census import Process
from benchmarks.faults.footprint import Footprint

GAUGES = ("manta_num_requests_running", "manta_num_requests_waiting", "manta_kv_cache_usage_perc")
MAX_GROWTH = 1.1  # of a process's memory
SPARE_MIB = 8.0  # which allocators may keep of a small process
SPARE_DESCRIPTORS = 2  # a connection that is being made, at either look
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Remains:
    """What was left after clients had gone.

    Args:
        gauges: Sequences that run, that wait, and the used share of the cache, by their metrics' names.
        emptied_s: How long it took until all of them were zero; None: they were not.
        footprints: Two looks at each process: before the clients, and after.
    """

    gauges: Mapping[str, float]
    emptied_s: float | None
    footprints: tuple[Footprint, ...]

    def wrong(self) -> list[str]:
        """What is left that should not be, a line each."""
        lines: list[str] = []
        if self.emptied_s is None:
            lines.append(f"sequences or blocks are left: {dict(self.gauges)}")
        for one in self.footprints:
            before_mib, after_mib = one.memory_mib[0], one.memory_mib[-1]
            if after_mib > before_mib * MAX_GROWTH + SPARE_MIB:
                lines.append(f"{one.kind} {one.pid} holds {after_mib:.0f} MiB; {before_mib:.0f} before")
            if one.descriptors[-1] > one.descriptors[0] + SPARE_DESCRIPTORS:
                lines.append(f"{one.kind} {one.pid} has {one.descriptors[-1]} descriptors; {one.descriptors[0]} before")
        return lines


async def wait_empty(server: Server, timeout_s: float) -> tuple[dict[str, float], float | None]:
    """Asks until no sequence runs or waits and no block is used; returns the last figures, and how long it took."""
    began_s = time.perf_counter()
    while True:
        gauges = await read_gauges(server)
        spent_s = time.perf_counter() - began_s
        if not any(gauges.values()):
            return gauges, spent_s
        if spent_s > timeout_s:
            return gauges, None
        await asyncio.sleep(POLL_S)


async def read_gauges(server: Server) -> dict[str, float]:
    """The service's own figures. Raises ServerError where they cannot be had."""
    async with open_session(server.timeout_s) as session, session.get(f"{server.base_url}/metrics") as response:
        text = await response.text()
        if response.status != 200:
            raise ServerError(f"{server.base_url}/metrics answered {response.status}: {text[:200]}")
    return gauges_in(text.splitlines())


def gauges_in(lines: Iterable[str]) -> dict[str, float]:
    """GAUGES in Prometheus' text format, the sum of each one's samples."""
    found: dict[str, float] = dict.fromkeys(GAUGES, 0.0)
    for line in lines:
        name = line.partition("{")[0].partition(" ")[0]
        if name in found:
            found[name] += float(line.rpartition(" ")[2])
    return found


def listeners(port: int) -> list[Process]:
    """The processes of this host that listen on a TCP port: what stands before a service's gateways."""
    inodes = {
        fields[9]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for fields in map(str.split, _lines(Path(table))[1:])
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    sockets = {f"socket:[{inode}]" for inode in inodes}
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [Process("ingress", pid, "") for pid in pids if sockets & _descriptors(pid)]


def _descriptors(pid: int) -> set[str]:
    found: set[str] = set()
    folder = Path(f"/proc/{pid}/fd")
    try:
        for name in os.listdir(folder):
            try:
                found.add(str((folder / name).readlink()))
            except FileNotFoundError:
                continue  # closed since it was listed
    except (FileNotFoundError, PermissionError):
        return set()  # it has ended, or is another user's
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
