"""`manta serve` as a user runs it: a process of its own, with a Ray of its own, ended by signals at every stage."""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import ray
import yaml

from tests.integration.marked import MARK, kill_marked, marked, new_mark
from tests.integration.ray_service import (
    SHARE,
    RayService,
    alive,
    complete,
    free_port,
    leftovers,
    nothing_of,
    wait_until,
)
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

START_S = 90.0
STOP_S = 20.0
# Serve gives every replica a gRPC port for other replicas, on all interfaces and guarded by Ray's token.
REPLICAS = ("ray::ServeReplica",)
# Ray's own agents look for their killed cluster for a minute before they end.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# So does a worker that was only just being started: minutes, where it has no raylet to say hello to.
STARTING = tuple(f"{sys.executable}{flag} {Path(ray.__file__).parent}/_private/workers/" for flag in ("", " -u"))
NOISE = ("INFO", "WARNING", "Traceback", "Token authentication", "SIGTERM received")


class Command:
    """A `manta serve` under way."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, mark: str) -> None:
        self.process = process
        self._output = output
        self._mark = mark

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, START_S, text, lambda: self.output)
        assert text in self.output, f"it ended with {self.process.returncode}:\n{self.output}"

    def send(self, number: signal.Signals) -> None:
        """Sends SIGINT to the whole process group, as a terminal does; another signal to the process alone."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def ends_with(self, *codes: int, but: tuple[str, ...] = ()) -> None:
        """Waits for the end; nothing of it may be left, except processes whose names begin with one of `but`."""
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it has not ended after {STOP_S} s; left: {self.left()}\n{self.output}")
        assert self.process.returncode in codes, self.output
        wait_until(lambda: not self.left(but), STOP_S, "all its processes end", lambda: self.left())

    def left(self, but: tuple[str, ...] = ()) -> dict[int, str]:
        """The processes of this run that live, whoever their parent is now; without those named in `but`."""
        return {pid: name for pid, name in marked(self._mark).items() if not name.startswith(but)}

    def listens_at(self, but: tuple[str, ...]) -> set[str]:
        """The addresses at which its processes accept TCP connections; without those named in `but`."""
        sockets = {os.readlink(link) for pid in self.left(but) for link in descriptors(pid)}
        return {address for address, inode in listening() if f"socket:[{inode}]" in sockets}


def descriptors(pid: int) -> list[Path]:
    return [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


def listening() -> Iterator[tuple[str, str]]:
    """(address, inode) of every TCP socket on this host that listens; IPv4 addresses in IPv6 form as IPv4."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A":
                words = bytes.fromhex(local.split(":")[0])
                raw = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                address = ipaddress.ip_address(raw)
                yield str(getattr(address, "ipv4_mapped", None) or address), inode


def manta_serve(directory: Path, tmp_path: Path, *args: str) -> AbstractContextManager[Command]:
    return manta(tmp_path, "serve", str(directory), *args)


# A shell starts what a script puts into the background with SIGINT ignored, a terminal not: whatever started the tests,
# a command is started as its test says.
TERMINAL, SCRIPT = "signal.default_int_handler", "signal.SIG_IGN"


@contextmanager
def manta(
    tmp_path: Path,
    *args: str,
    started_by: str = TERMINAL,
    folder: Path | None = None,
    python: Path | str = sys.executable,
    **environment: str,
) -> Iterator[Command]:
    """A `manta` command under way; nothing of it is left at the end.

    Args:
        tmp_path: Where its output is kept.
        started_by: TERMINAL or SCRIPT.
        folder: Where it is started; None: where the tests were.
        python: Of the environment that Manta is installed in.
    """
    output, mark = tmp_path / "output.txt", new_mark()
    code = f"import signal; signal.signal(signal.SIGINT, {started_by}); from manta.cli import main; main()"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [str(python), "-c", code, *args],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: mark, **environment},
            start_new_session=True,
        )
    command = Command(process, output, mark)
    try:
        yield command
    finally:
        kill_marked(mark)
        process.wait(STOP_S)


def test_it_serves_until_ctrl_c(checkpoint: tuple[Path, Oracle], tmp_path: Path) -> None:
    port = free_port()
    with manta_serve(checkpoint[0], tmp_path, "--port", str(port), "--model-name", "m") as command:
        command.wait_for("Ready in")
        url = f"http://127.0.0.1:{port}"
        assert f"m at {url}" in command.output
        body = {"model": "m", "prompt": "hello", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=20, trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert [noise for noise in NOISE if noise in command.output] == [], command.output
        assert command.listens_at(but=REPLICAS) == {"127.0.0.1"}
        begun_s = time.monotonic()
        command.send(signal.SIGINT)
        command.ends_with(0, 130)
        assert time.monotonic() - begun_s < 10
        assert command.output.rstrip().endswith("Stopped.")
        assert [noise for noise in NOISE if noise in command.output] == [], command.output


@pytest.mark.parametrize(
    ("stage", "number", "times", "started_by"),
    [
        ("starting Ray", signal.SIGINT, 1, TERMINAL),
        pytest.param("starting the parts", signal.SIGINT, 2, TERMINAL, marks=pytest.mark.full),
        pytest.param("starting Ray", signal.SIGTERM, 1, SCRIPT, marks=pytest.mark.full),
        ("connecting the parts", signal.SIGTERM, 1, SCRIPT),
    ],
)
def test_a_signal_while_it_starts(
    checkpoint: tuple[Path, Oracle], tmp_path: Path, stage: str, number: signal.Signals, times: int, started_by: str
) -> None:
    args = ("serve", str(checkpoint[0]), "--port", str(free_port()))
    with manta(tmp_path, *args, started_by=started_by) as command:
        command.wait_for(stage)
        time.sleep(0.5)
        for _ in range(times):
            command.send(number)
            time.sleep(0.3)
        command.ends_with(130)
        assert "Interrupted" in command.output
        assert [noise for noise in NOISE if noise in command.output] == [], command.output


def test_on_an_existing_cluster_it_stops_what_it_started(
    alpha: RayService, ray_port: int, checkpoint: tuple[Path, Oracle], tmp_path: Path
) -> None:
    """Ctrl-C twice, for the impatient; nothing of its service stays, and nothing else goes."""
    address = ray.get_runtime_context().gcs_address
    args = ("serve", str(service_file(checkpoint[0], ray_port, tmp_path)), "--address", address)
    with manta(tmp_path, *args) as command:
        command.wait_for("Ready in")
        answer = httpx.get(f"http://127.0.0.1:{ray_port}/guest/v1/models", timeout=20, trust_env=False)
        assert answer.json()["data"][0]["id"] == "m"
        found = json.loads(output_of(tmp_path / "status", "status", "guest", "--json", "--address", address))
        pids = [one["pid"] for part in ("routers", "attention_nodes", "gateways") for one in found[part]]
        command.send(signal.SIGINT)
        time.sleep(0.2)
        command.send(signal.SIGINT)
        command.ends_with(0, 130)
    wait_until(lambda: nothing_of("guest"), STOP_S, "its service is gone", lambda: leftovers("guest"))
    wait_until(lambda: not any(map(alive, pids)), STOP_S, "its processes end", lambda: list(map(alive, pids)))
    assert complete(alpha.client(), [5, 6], 2).finish_reason == "length"


@pytest.mark.full
def test_down_ends_a_service_that_another_process_holds(
    ray_port: int, checkpoint: tuple[Path, Oracle], tmp_path: Path
) -> None:
    address = ray.get_runtime_context().gcs_address
    args = ("serve", str(service_file(checkpoint[0], ray_port, tmp_path)), "--address", address)
    with manta(tmp_path, *args) as command:
        command.wait_for("Ready in")
        assert output_of(tmp_path / "down", "down", "guest", "--address", address) == "Stopped guest.\n"
        assert nothing_of("guest"), leftovers("guest")
        command.ends_with(1)
        assert "stopped from elsewhere" in command.output


def service_file(directory: Path, port: int, tmp_path: Path) -> Path:
    data = {
        "name": "guest",
        "model": {"path": str(directory), "name": "m"},
        "api": {"port": port, "route_prefix": "/guest"},
        "attention": {"num_cpus": SHARE},
        "experts": {"num_cpus": SHARE},
    }
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def output_of(folder: Path, *args: str) -> str:
    """What another `manta` command prints; it must succeed."""
    folder.mkdir()
    with manta(folder, *args) as command:
        command.ends_with(0)
        return command.output


@pytest.mark.full
def test_killed_it_leaves_nothing_either(checkpoint: tuple[Path, Oracle], tmp_path: Path) -> None:
    with manta_serve(checkpoint[0], tmp_path, "--port", str(free_port())) as command:
        command.wait_for("connecting the parts")
        command.process.kill()
        command.ends_with(-signal.SIGKILL, but=AGENTS + STARTING)


def test_a_taken_port_is_refused_at_once(checkpoint: tuple[Path, Oracle], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with manta_serve(checkpoint[0], tmp_path, "--port", str(port)) as command:
            command.ends_with(2)
    assert f"{port} was given" in command.output
