"""The hop benchmark: the transports that need no Ray, with few processes and rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hop import command as hop
from benchmarks.hop.report import best_runs
from benchmarks.hop.runner import HopResult


def result(name: str, median_ms: float) -> HopResult:
    return HopResult(name, 10, median_ms, 2 * median_ms, 3 * median_ms, None)


def test_the_best_run_of_each_transport_is_shown() -> None:
    runs = [result("unix", 3.0), result("tcp", 5.0), result("unix", 2.0), result("tcp", 6.0)]
    assert [(run.transport, run.median_ms) for run in best_runs(runs)] == [("unix", 2.0), ("tcp", 5.0)]


@pytest.mark.parametrize("arguments", [["--only", "pigeons"], ["--peers", "0"], ["--json", "nowhere/at/all.json"]])
def test_wrong_arguments_end_with_what_is_allowed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        hop.main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_small_run(tmp_path: Path) -> None:
    """In a process of its own: forking pytest's, with whatever threads it has by now, could hang."""
    written = tmp_path / "hop.json"
    sizes = ["--peers", "2", "--rows", "2", "--width", "8", "--rounds", "20"]
    command = [sys.executable, "-m", "benchmarks.hop", *sizes, "--only", "unix,tcp,raw-unix,raw-tcp,zmq,grpc,local"]
    done = subprocess.run([*command, "--json", str(written)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(written.read_text())
    assert document["skipped"] == {}, done.stderr
    runs = {run["transport"]: run for run in document["runs"]}
    assert list(runs) == ["unix", "tcp", "raw-unix", "raw-tcp", "zmq", "grpc", "local"]
    for name, run in runs.items():
        assert run["num_rounds"] == 20
        assert 0 < run["median_ms"] <= run["p90_ms"] <= run["p99_ms"]
        assert (run["death_seen_ms"] is None) is (name == "local")
        assert name in done.stdout
