"""Runs the targets of `tests/fuzz/targets` under libFuzzer (through atheris), each in a process of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.execute import FAILURE, HAS_ATHERIS, KNOWN_FILE
from tests.fuzz.outcome import Finding, Outcome
from tests.fuzz.targets import load

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
BUILD = ROOT / "build" / "fuzz"  # inputs found on this machine, from which the next run goes on
MAX_INPUT_BYTES = 4096
MAX_FINDINGS = 5  # of one target, of different causes
INPUT_TIMEOUT_S = 30  # one input that takes longer hangs
MAX_PROCESS_MIB = 2048
START_TIMEOUT_S = 300  # a process may take so long to start and to end, on a busy machine
REDUCE_TIMEOUT_S = 120
_PROGRESS = re.compile(r"#(\d+)\s.*?cov: (\d+) ft: (\d+)")
_FINAL = re.compile(r"stat::(number_of_executed_units|peak_rss_mb):\s+(\d+)")
_SAVED = re.compile(r"Test unit written to (\S+)")

OnProgress = Callable[[str, int, str], None]  # a target, its executions so far, their coverage


@dataclass
class _Log:
    """What a fuzzing process has said so far."""

    executions: int = 0
    edges: int = 0
    features: int = 0
    peak_mib: float | None = None
    saved: Path | None = None
    lines: list[str] = field(default_factory=list)

    def add(self, other: "_Log") -> None:
        """Takes over what a later process of the same target did."""
        self.executions += other.executions
        self.edges, self.features = max(self.edges, other.edges), max(self.features, other.features)
        self.peak_mib = max(self.peak_mib or 0.0, other.peak_mib or 0.0) or None

    def take(self, line: str) -> None:
        self.lines = [*self.lines[-60:], line.rstrip()]
        if found := _PROGRESS.match(line):
            self.executions, self.edges, self.features = map(int, found.groups())
        elif found := _FINAL.match(line):
            name, number = found.groups()
            if name == "peak_rss_mb":
                self.peak_mib = float(number)
            else:
                self.executions = int(number)
        elif found := _SAVED.search(line):
            self.saved = Path(found.group(1))

    @property
    def coverage(self) -> str:
        return f"{self.edges} edges, {self.features} features"


def fuzz(name: str, seconds: float, seed: int, on_progress: OnProgress) -> Outcome:
    """Fuzzes one target for so long (at least a second), beginning with its corpora.

    After a finding it goes on, past failures of the same cause, up to MAX_FINDINGS.
    """
    folder = BUILD / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "findings").mkdir(exist_ok=True)
    (folder / KNOWN_FILE).write_text("")
    began_s = time.monotonic()
    if not HAS_ATHERIS:
        executions = replay(name)
        return Outcome(name, executions, "corpora alone: atheris is not installed", time.monotonic() - began_s)
    total, findings, left_s = _Log(), list[Finding](), seconds
    while len(findings) < MAX_FINDINGS and (left_s >= 1 or not total.executions):
        log, status = _run(name, _arguments(name, folder, left_s, seed + len(findings)), left_s, on_progress)
        total.add(log)
        if status == 0:
            break
        findings.append(_finding(name, log, status))
        with (folder / KNOWN_FILE).open("a") as known:
            known.write(findings[-1].words.splitlines()[0] + "\n")
        left_s = seconds - (time.monotonic() - began_s)
    return Outcome(name, total.executions, total.coverage, time.monotonic() - began_s, total.peak_mib, tuple(findings))


def replay(name: str) -> int:
    """Gives a target each input of its committed corpus; returns how many they are. Raises what the target raises."""
    one, inputs = load(name).one, sorted((CORPUS / name).iterdir())
    for path in inputs:
        one(path.read_bytes())
    return len(inputs)


def _arguments(name: str, folder: Path, seconds: float, seed: int) -> list[str]:
    return [
        f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MAX_PROCESS_MIB}", "-print_final_stats=1",
        f"-artifact_prefix={folder / 'findings'}{os.sep}",
        str(folder / "corpus"), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else []),
    ]  # fmt: skip


def _run(name: str, arguments: list[str], seconds: float, on_progress: OnProgress) -> tuple[_Log, int]:
    log = _Log()
    command = [sys.executable, "-m", "tests.fuzz.execute", name, str(BUILD / name), *arguments]
    deadline_s = time.monotonic() + seconds + START_TIMEOUT_S
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    with (
        folder_in_memory() as folder,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "TMPDIR": folder}, text=True, encoding="utf-8", **options
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.take(line)
                on_progress(name, log.executions, log.coverage)
                if time.monotonic() > deadline_s:
                    break
            process.wait(max(1.0, deadline_s - time.monotonic()))
        finally:
            process.kill()  # does nothing to one that has ended
    return log, process.returncode


def folder_in_memory() -> TemporaryDirectory[str]:
    """A folder for what targets write thousands of times a second; on disk where the system has none in memory."""
    in_memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="manta-fuzz-", dir=in_memory if os.access(in_memory, os.W_OK) else None)


def _finding(name: str, log: _Log, status: int) -> Finding:
    if log.saved is None:
        return Finding(f"its process ended with {status}:\n" + "\n".join(log.lines[-25:]))
    if log.saved.name.startswith("crash-"):
        return Finding(reduce(name, log.saved) or "\n".join(log.lines[-25:]), log.saved)
    what = "takes over" if log.saved.name.startswith("timeout-") else "takes too much memory; the limits are"
    return Finding(f"one input {what} {INPUT_TIMEOUT_S} s and {MAX_PROCESS_MIB} MiB", log.saved)


def reduce(name: str, path: Path) -> str:
    """Makes the input in a file smaller; returns its failure, in words."""
    command = [sys.executable, "-m", "tests.fuzz.execute", name, "--reduce", str(path)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=REDUCE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the input in {path} fails, and did not get smaller within {REDUCE_TIMEOUT_S} s"
    return done.stdout.rpartition(FAILURE)[2].strip()
