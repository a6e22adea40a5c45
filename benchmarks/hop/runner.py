"""Runs one transport's measurement in a process of its own, with its echo processes, and ends them all."""

import contextlib
import ctypes
import gc
import importlib.util
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

WARM_UP_S = 0.5
START_TIMEOUT_S = 120.0
DEATH_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class HopSettings:
    """What is measured. `num_rounds` hops, or as many as fit into `limit_s` seconds."""

    num_peers: int
    num_rows: int
    width: int
    num_rounds: int
    limit_s: float
    start: Literal["fork", "spawn"]


@dataclass(frozen=True)
class HopResult:
    """One run of one transport. `death_seen_ms` is None where a transport does not tell of a peer's death."""

    transport: str
    num_rounds: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    death_seen_ms: float | None


@dataclass(frozen=True)
class Skipped:
    """Why a transport could not be measured."""

    reason: str


class Hop(Protocol):
    """One transport's connections to all echo processes."""

    def round(self) -> None:
        """Sends the rows to every peer and waits for every answer."""
        ...

    def watch_death(self, timeout_s: float) -> bool:
        """Returns True as soon as the loss of the first peer, which has been asked and killed, is known."""
        ...

    def ask_first(self) -> None:
        """Sends the rows to the first peer only."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Transport:
    """One way to make the hop.

    Args:
        echo: Serves in an echo process; calls what it is given with its address first. None: no processes.
        connect: Connects to the addresses; gets the rows to send.
        needs: The module without which it is skipped.
    """

    name: str
    what: str
    echo: Callable[[Callable[[Any], None]], None] | None
    connect: Callable[[list[Any], torch.Tensor], Hop]
    needs: str | None = None


def measure(transport: Transport, settings: HopSettings) -> HopResult | Skipped:
    """Measures one transport, in a fresh process: some leave threads behind that a later fork would not survive."""
    if transport.needs is not None and importlib.util.find_spec(transport.needs) is None:
        return Skipped(f"the module {transport.needs} is not installed")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure_here, args=(transport, settings, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return Skipped("its process ended without a result")
    finally:
        process.join(START_TIMEOUT_S)
        process.kill()
        process.join()


def _measure_here(transport: Transport, settings: HopSettings, report: Connection) -> None:
    _die_with_parent()
    torch.set_num_threads(1)
    gc.freeze()
    try:
        with _socket_folder(), _echo_processes(transport, settings) as (processes, addresses), torch.inference_mode():
            rows_TD = torch.randn(settings.num_rows, settings.width)
            hop = transport.connect(addresses or [None] * settings.num_peers, rows_TD)
            try:
                times_s = _time_rounds(hop, settings)
                death_s = _time_death(hop, processes)
            finally:
                hop.close()
        report.send(_summary(transport.name, times_s, death_s))
    except Exception as error:
        traceback.print_exc()
        report.send(Skipped(f"it failed: {error!r}"))


def _time_rounds(hop: Hop, settings: HopSettings) -> list[float]:
    warm_s = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm_s:
        hop.round()
    times_s: list[float] = []
    end_s = time.perf_counter() + settings.limit_s
    while len(times_s) < settings.num_rounds and (now_s := time.perf_counter()) < end_s:
        hop.round()
        times_s.append(time.perf_counter() - now_s)
    return times_s


def _time_death(hop: Hop, processes: list[BaseProcess]) -> float | None:
    """Seconds from the first echo process's death, with a call under way, until it is noticed."""
    if not processes:
        return None
    pid = processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that it does not answer before it dies
    _wait_stopped(pid)
    hop.ask_first()
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.perf_counter()
    return time.perf_counter() - killed_s if hop.watch_death(DEATH_TIMEOUT_S) else None


def _wait_stopped(pid: int) -> None:
    """Waits until each of a process's threads has stopped: on a busy machine that takes a moment."""
    deadline_s = time.perf_counter() + STOP_TIMEOUT_S
    while time.perf_counter() < deadline_s:
        states = {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}
        if states == {"T"}:
            return
        time.sleep(0.001)


def _summary(name: str, times_s: list[float], death_s: float | None) -> HopResult:
    cuts_ms = [cut * 1e3 for cut in statistics.quantiles(times_s, n=100)]
    death_ms = None if death_s is None else death_s * 1e3
    return HopResult(name, len(times_s), cuts_ms[49], cuts_ms[89], cuts_ms[98], death_ms)


@contextlib.contextmanager
def _socket_folder() -> Generator[None]:
    """A folder for this run's sockets, which echo processes leave behind when they are killed."""
    with tempfile.TemporaryDirectory(prefix="manta-hop-") as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield


@contextlib.contextmanager
def _echo_processes(transport: Transport, settings: HopSettings) -> Generator[tuple[list[BaseProcess], list[Any]]]:
    """Starts the echo processes, and ends them however the measurement ends."""
    processes: list[BaseProcess] = []
    addresses: list[Any] = []
    start: Any = multiprocessing.get_context(settings.start)
    try:
        for _ in range(settings.num_peers if transport.echo is not None else 0):
            here, there = start.Pipe(duplex=False)
            process = start.Process(target=_serve_echo, args=(transport.echo, there))
            process.start()
            processes.append(process)
            there.close()
            if not here.poll(START_TIMEOUT_S):
                raise TimeoutError(f"an echo process did not start within {START_TIMEOUT_S:g} s")
            addresses.append(here.recv())
        yield processes, addresses
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve_echo(echo: Callable[[Callable[[Any], None]], None], report: Connection) -> None:
    """As an expert's process: woken, it does not preempt whoever is still sending to the others."""
    _die_with_parent()
    torch.set_num_threads(1)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.freeze()
    with torch.inference_mode():
        echo(report.send)


def _die_with_parent() -> None:
    """Also when the parent is killed, nothing stays behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
