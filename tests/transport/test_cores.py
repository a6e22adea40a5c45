"""How many cores there are, as Linux tells in files: here, in made-up ones."""

import os
from pathlib import Path

import pytest

from transport.cores import available_cores


@pytest.fixture(autouse=True)
def eight_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))


def groups(root: Path, text: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": text, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_groups_the_affinity_decides(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 8),
        ("", 8),
        ("nonsense", 8),
    ],
)
def test_a_container_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    root = groups(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": f"{quota}\n"})
    assert available_cores(root) == cores


def test_the_tightest_of_nested_groups_decides(tmp_path: Path) -> None:
    files = {"a.slice/cpu.max": "300000 100000", "a.slice/b/cpu.max": "max 100000", "a.slice/other/cpu.max": "1 1"}
    root = groups(tmp_path, "0::/a.slice/b\n", {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert available_cores(root) == 3


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("400000", 4), ("20000", 1)])
@pytest.mark.parametrize("path", ["/", "/docker/0123"])  # the second: as its host calls it, unknown inside
def test_a_container_of_version_1(tmp_path: Path, path: str, quota: str, cores: int) -> None:
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    root = groups(tmp_path, f"4:memory:{path}\n3:cpu,cpuacct:{path}\n0::{path}\n", files)
    assert available_cores(root) == cores


def test_this_machine_has_some() -> None:
    assert 1 <= available_cores() <= 8
