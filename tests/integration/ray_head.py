"""A Ray as `ray start --head` makes it, for the tests that run commands on it."""

import os
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.ray_session import RAY_ENVIRONMENT
from tests.integration.marked import MARK, kill_marked, marked, new_mark
from tests.integration.ray_service import free_port, wait_until

ROOT = Path(__file__).parents[2]
START_S = 180.0
STOP_S = 60.0
# What a service adds to a Ray: everything but what a Ray without one runs.
PARTS = ("ray::ServeReplica", "ray::ExpertActor", "ray::Controller")


@dataclass
class Head:
    """A Ray of one host.

    Args:
        folder: Where commands run, and what they print is kept.
        environment: Of every command: it leads to this Ray.
        mark: What all of its processes have.
        port: Where its Serve listens.
    """

    folder: Path
    environment: dict[str, str]
    mark: str
    port: int

    def start(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        """Starts one of Ray's commands, in a session of its own."""
        with self.output(name).open("wb") as file:
            return subprocess.Popen(
                [str(Path(sysconfig.get_path("scripts")) / name), *args],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, name: str, *args: str) -> None:
        """Runs one of Ray's commands, which must succeed."""
        assert self.start(name, *args).wait(START_S) == 0, self.said(name)

    def output(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def said(self, name: str = "serve") -> str:
        """What a command has printed, and what runs."""
        return f"{self.output(name).read_text()}\n{marked(self.mark)}"

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/completions", json=body, timeout=START_S, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_healthy(self) -> None:
        url = f"http://127.0.0.1:{self.port}/health"
        wait_until(lambda: answers(url, 200), START_S, "the service is healthy", self.said)

    def parts(self) -> dict[int, str]:
        """The processes of services."""
        return {pid: name for pid, name in marked(self.mark).items() if name.startswith(PARTS)}

    def num_of(self, part: str) -> int:
        return sum(name.startswith(part) for name in self.parts().values())

    def wait_gone(self) -> None:
        wait_until(lambda: not self.parts(), STOP_S, "every part ends", self.parts)


def answers(url: str, *codes: int) -> bool:
    """Whether somebody answers there, with one of these codes. (401: a dashboard that wants Ray's token.)"""
    try:
        return httpx.get(url, timeout=20, trust_env=False).status_code in codes
    except httpx.HTTPError:
        return False


@contextmanager
def started_head(folder: Path, **environment: str) -> Iterator[Head]:
    """A Ray that asks for a token, on loopback and free ports.

    Args:
        folder: Where commands run.
        environment: Of Ray and of commands, beside what leads to this Ray.
    """
    gcs, dashboard = free_port(), free_port()
    around = {name: value for name, value in os.environ.items() if name not in RAY_ENVIRONMENT}  # of the session's Ray
    whole = {
        **around,
        MARK: new_mark(),
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",  # Ray's default for a new cluster; by its address, it does not find that out
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps it on loopback: see cluster/ray_session.py
        **environment,
    }
    made = Head(folder, whole, whole[MARK], free_port())
    with running_head(made, gcs, dashboard):
        yield made


@contextmanager
def running_head(head: Head, gcs: int, dashboard: int) -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="mc")  # short: Ray's sockets are in it
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "ray-client-server-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    options = [f"--{name}={value}" for name, value in {**ports, "temp-dir": folder, "num-cpus": 4}.items()]
    process = head.start("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", *options)
    try:
        url = f"http://127.0.0.1:{dashboard}/api/version"
        wait_until(lambda: answers(url, 200, 401), START_S, "Ray runs", lambda: head.said("ray"))
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        kill_marked(head.mark)
        shutil.rmtree(folder, ignore_errors=True)
