"""The package is replaced in place under a running service: it is adopted, or refused with all of it left alone."""

import json
import re
import shutil
import subprocess
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from manta_imports import PACKAGES
from tests.faults.load import load
from tests.integration.marked import marked
from tests.integration.ray_head import START_S, STOP_S, Head, started_head
from tests.integration.ray_service import MODEL, SHARE, RayService, complete, kill, wait_until
from tests.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.full]

ROOT = Path(__file__).parents[2]
BEFORE = "24e6333"  # the last commit that pickled what it stored
COMMAND_S = 90.0
RECOVERY_S = 90.0
NAME = "upgraded"
# In the names that Ray gives processes, those that begin too: "ray::upgraded/controller:Controller.__init__".
EXPERTS, CONTROLLER = ":ExpertActor", ":Controller"
GATEWAY, ROUTER, NODE = (f":ServeReplica:{NAME}:{part}" for part in ("Gateway", "RouterReplica", "AttentionNode"))
DEPLOYMENTS = {GATEWAY: "serving/deployment.py", ROUTER: "router/deployment.py", NODE: "attention/deployment.py"}
MADE = ".made"
Put = Callable[[Path], None]


def put_before(folder: Path) -> None:
    """The package as it was before versioned formats."""
    git = ["git", "-C", str(ROOT)]
    look = [*git, "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    if subprocess.run(look, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"this clone has no commit {BEFORE}: it is shallow, or no clone")
    packed = subprocess.run([*git, "archive", BEFORE], capture_output=True, timeout=60, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def put_this(folder: Path) -> None:
    """The package as it is here."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "manta_imports.py", folder)


def put_newer(folder: Path) -> None:
    """The package as it may be later: what it stores has the next format's number, and it still reads this one's.

    Its replicas of Serve's deployments leave a file beside their class when they are started.
    """
    put_this(folder)
    change(folder / "cluster" / "plain.py", r"^FORMAT = 1$", "FORMAT = 2")
    for file in DEPLOYMENTS.values():
        change(folder / file, r"^( +)(.* = join\(\))$", rf"\1\2\n\1open(__file__ + {MADE!r}, 'w').close()")


def change(path: Path, pattern: str, text: str) -> None:
    """Changes the one line of a file that is so."""
    changed, count = re.subn(f"(?m){pattern}", text, path.read_text())
    assert count == 1, path
    path.write_text(changed)


@dataclass
class Upgraded:
    """A service on a Ray of its own, both of whose processes import Manta from one folder.

    Args:
        package: That folder.
        file: The service file.
    """

    head: Head
    package: Path
    file: Path

    @property
    def service(self) -> RayService:
        return RayService(NAME, f"http://127.0.0.1:{self.head.port}")

    def replace(self, put: Put) -> None:
        """Replaces the package in place."""
        shutil.rmtree(self.package)
        self.package.mkdir()
        put(self.package)

    def manta(self, *args: str) -> tuple[int, str]:
        """Runs a command of the package that is there now; returns its exit status and what it has said."""
        done = subprocess.run(
            [str(Path(sysconfig.get_path("scripts")) / "manta"), *args],
            cwd=self.head.folder,
            env=self.head.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        code, said = self.manta("status", NAME, "--json")
        assert code == 0, said
        return json.loads(said)

    def events(self) -> list[str]:
        return [event["text"] for event in self.status()["events"]]

    def change(self, **sections: dict[str, Any]) -> None:
        """Applies a changed service file."""
        spec = yaml.safe_load(self.file.read_text())
        for section, fields in sections.items():
            spec[section] |= fields
        self.file.write_text(yaml.safe_dump(spec))
        code, said = self.manta("apply", str(self.file), "--yes")
        assert code == 0, said

    def parts(self) -> dict[int, str]:
        """The processes of the service."""
        kinds = (EXPERTS, CONTROLLER, *DEPLOYMENTS)
        return {pid: name for pid, name in marked(self.head.mark).items() if any(kind in name for kind in kinds)}

    def pids(self, part: str) -> set[int]:
        """The processes of one kind of part."""
        return {pid for pid, name in self.parts().items() if part in name}

    def end(self, part: str) -> None:
        """Ends every process of a part, and waits until others stand in for them."""
        before = self.pids(part)
        assert before, self.head.said()
        for pid in before:
            kill(pid)
        wait_until(
            lambda: len(self.pids(part) - before) == len(before), RECOVERY_S, f"{part} is there again", self.parts
        )


@contextmanager
def started(tmp_path: Path, put: Put, checkpoint: Path) -> Iterator[Upgraded]:
    """A service of that package, which answers: two expert actors, and one of each other part."""
    package, folder = tmp_path / "package", tmp_path / "there"
    package.mkdir()
    folder.mkdir()
    put(package)
    with started_head(folder, PYTHONPATH=str(package), OMP_NUM_THREADS="1", RAY_worker_niceness="0") as head:
        spec = {
            "name": NAME,
            "model": {"path": str(checkpoint), "name": MODEL},
            "api": {"port": head.port},
            "attention": {"num_cpus": SHARE},
            "experts": {"num_cpus": SHARE, "per_actor": 2, "slices": 1},
            "limits": {"recovery_timeout_s": 60, "load_timeout_s": 120, "orphan_timeout_s": 60, "drain_timeout_s": 5},
        }
        file = folder / "service.yaml"
        file.write_text(yaml.safe_dump(spec))
        serving = head.start("manta", "serve", str(file), "--address", "auto")
        wait_until(
            lambda: "Ready in" in head.said("manta") or serving.poll() is not None,
            START_S,
            "it serves",
            lambda: head.said("manta"),
        )
        assert serving.poll() is None, head.said("manta")
        yield Upgraded(head, package, file)


def test_what_is_understood_is_taken_over(tmp_path: Path, checkpoint: tuple[Path, Oracle], seed: int) -> None:
    """Parts that run the old package follow the new controller; what is started from then on is of the new one."""
    with started(tmp_path, put_this, checkpoint[0]) as upgraded:
        experts = upgraded.pids(EXPERTS)
        assert len(experts) == 2, upgraded.parts()
        with load(upgraded.service, checkpoint[1], seed, num_streams=2) as streams:
            upgraded.replace(put_newer)
            plain = upgraded.manta("plan", str(upgraded.file))
            assert plain[0] == 0, plain
            assert "nothing to change" in plain[1]
            upgraded.end(CONTROLLER)
            wait_until(lambda: "took over 2 of 2 expert actors" in upgraded.events(), RECOVERY_S, "it takes them over")
            upgraded.change(experts={"overrides": {0: {"replicas": 2}}})
            assert len(upgraded.pids(EXPERTS)) == 3
            assert experts < upgraded.pids(EXPERTS), "none of those that ran has ended"
            streams.wait_flowing()
            upgraded.end(EXPERTS)  # all others hear of those that follow
            for part in (ROUTER, NODE):
                streams.wait_flowing()
                upgraded.end(part)
        upgraded.end(GATEWAY)
        upgraded.head.wait_healthy()
        for file in DEPLOYMENTS.values():
            assert (upgraded.package / f"{file}{MADE}").exists(), "its class is the new package's"
        prompt = [5, 6, 7]
        answer = complete(upgraded.service.client(), prompt, 8)
        checkpoint[1].check_greedy(prompt, answer.token_ids)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (put_before, put_this, "was written by a Manta of before versioned formats"),
        (put_newer, put_this, "has format 2, of Manta"),
    ],
    ids=["of before versioned formats", "of a newer format"],
)
def test_what_is_not_understood_is_refused_and_goes_on(
    tmp_path: Path, checkpoint: tuple[Path, Oracle], seed: int, before: Put, after: Put, why: str
) -> None:
    with started(tmp_path, before, checkpoint[0]) as upgraded:
        parts = set(upgraded.parts())
        controllers = upgraded.pids(CONTROLLER)
        with load(upgraded.service, checkpoint[1], seed, num_streams=1) as streams:
            upgraded.replace(after)
            refused(upgraded, why, "apply", str(upgraded.file), "--yes")
            assert set(upgraded.parts()) == parts, "a refusal ends nothing"
            upgraded.end(CONTROLLER)
            refused(upgraded, why, "plan", str(upgraded.file))
            streams.wait_flowing()
            wait_until(lambda: why in upgraded.manta("status")[1], RECOVERY_S, "status says so", upgraded.parts)
            assert parts - controllers <= set(upgraded.parts()), "nothing else has ended"
        assert upgraded.manta("down", NAME)[0] == 0
        wait_until(lambda: not upgraded.parts(), STOP_S, "every part ends", upgraded.parts)


def refused(upgraded: Upgraded, why: str, *command: str) -> None:
    """A command that would need to understand the service says why it does not, and what to do."""
    code, said = upgraded.manta(*command)
    said = " ".join(said.split())
    assert (code, why in said, "what runs goes on" in said) == (2, True, True), said
    assert "stop the service with `manta down`" in said
