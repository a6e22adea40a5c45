"""Changes without end: what stays neither grows nor collects open files."""

import os
from pathlib import Path

import pytest

from tests.faults.changing import Changes
from tests.faults.load import load
from tests.faults.parts import processes, wait_whole
from tests.integration.ray_service import RayService
from tests.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.full]

TWO = {"replicas": 2}
WARM_UP = 2
CYCLES = 5
# What a process may have more after CYCLES cycles, of which each has made and ended several of its connections.
MAX_MORE_FILES = 3
MAX_MORE_BYTES = 10 << 20


@pytest.mark.parametrize(
    ("parts", "stay"),
    [(("attention", "experts"), ("gateways", "routers")), (("api", "router"), ("attention_nodes", "experts"))],
)
def test_what_stays_does_not_grow(
    solo: RayService,
    checkpoint: tuple[Path, Oracle],
    ray_port: int,
    oracle: Oracle,
    seed: int,
    parts: tuple[str, ...],
    stay: tuple[str, ...],
) -> None:
    changes = Changes(solo, checkpoint[0], ray_port)
    staying = staying_processes(solo, stay)
    before: dict[int, tuple[int, int]] = {}
    for cycle in range(WARM_UP + CYCLES):
        if cycle == WARM_UP:
            before = {pid: (num_files(pid), num_bytes(pid)) for pid in staying}
        with load(solo, oracle, seed + cycle, num_streams=2) as streams:
            changes.make(**dict.fromkeys(parts, TWO))
            streams.wait_flowing()
            changes.make()
        wait_whole(solo)
    assert staying_processes(solo, stay) == staying
    more = {
        name: (num_files(pid) - before[pid][0], (num_bytes(pid) - before[pid][1]) / (1 << 20))
        for pid, name in staying.items()
    }
    print(f"files and MiB more after {CYCLES} cycles: {more}")
    assert all(files <= MAX_MORE_FILES for files, _ in more.values()), more
    assert all(mib * (1 << 20) <= MAX_MORE_BYTES for _, mib in more.values()), more


def staying_processes(service: RayService, parts: tuple[str, ...]) -> dict[int, str]:
    found = processes(service)
    named = {pid: f"{part} {pid}" for part in parts for pid in found[part]}
    return {service.status()["controller"]["pid"]: "controller", **named}


def num_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def num_bytes(pid: int) -> int:
    """The memory that a process holds for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
