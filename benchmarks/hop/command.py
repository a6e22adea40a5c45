"""Measures one hop: the same rows to each of N processes and N answers back, over every transport, side by side.

    python -m benchmarks.hop [--peers 8] [--rows 16] [--width 512] [--rounds 2000] [--repeats 1] [--json FILE]

`unix` and `tcp` are Manta's data plane as it runs in production: handshake, headers, tensors at both ends. `raw-*` move
the same bytes with nothing around them: the floor. Each transport is measured in a process of its own, from which its
echo processes are forked; `--start spawn` starts them anew instead, as Ray starts its workers. That makes every
transport slower, those that run more code more so: processes started anew have other addresses for the same code, so
that a core's branch predictor learns nothing in one that helps it in the next.

With `--repeats` the transports take turns, and each one's best run (by its median) is shown: on a machine that is doing
other things, the best run is the one that they disturbed least.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.hop.report import TABLE_WIDTH, table
from benchmarks.hop.runner import HopResult, HopSettings, Skipped, measure
from benchmarks.hop.transports import TRANSPORTS
from benchmarks.machine import machine


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def names(text: str) -> list[str]:
    """Names of transports with commas between, for argparse."""
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in TRANSPORTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no transport {', '.join(unknown)}; there are {', '.join(TRANSPORTS)}")
    return chosen


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hop", description="Measure one hop over transports.")
    add = parser.add_argument
    add("--peers", type=positive, default=8, metavar="N", help="echo processes (default 8)")
    add("--rows", type=positive, default=16, metavar="N", help="rows sent to each (default 16)")
    add("--width", type=positive, default=512, metavar="N", help="fp32 elements per row (default 512)")
    add("--rounds", type=positive, default=2000, metavar="N", help="hops measured in a run (default 2000)")
    add("--seconds", type=float, default=8.0, metavar="S", help="at most so long for a run's hops (default 8)")
    add("--repeats", type=positive, default=1, metavar="N", help="runs of each transport, in turns (default 1)")
    add("--only", type=names, default=list(TRANSPORTS), metavar="NAME,...", help=f"of {', '.join(TRANSPORTS)}")
    add("--start", choices=["fork", "spawn"], default="fork", help="how echo processes are started (default fork)")
    add("--json", type=Path, metavar="FILE", help="write every run here")
    return parser


def run_all(chosen: Sequence[str], repeats: int, settings: HopSettings) -> tuple[list[HopResult], dict[str, str]]:
    """Measures the transports in turns; returns every run, and why others were skipped."""
    results: list[HopResult] = []
    skipped: dict[str, str] = {}
    with Console(stderr=True).status("") as status:
        for repeat in range(repeats):
            for name in chosen:
                if name in skipped:
                    continue
                status.update(f"{name}, run {repeat + 1} of {repeats}")
                outcome = measure(TRANSPORTS[name], settings)
                if isinstance(outcome, Skipped):
                    skipped[name] = outcome.reason
                else:
                    results.append(outcome)
    return results, skipped


def as_json(results: Sequence[HopResult], skipped: dict[str, str], settings: HopSettings) -> str:
    """Every run, with the settings and the machine."""
    document = {
        "settings": asdict(settings),
        "machine": machine(),
        "runs": [asdict(result) for result in results],
        "skipped": skipped,
    }
    return json.dumps(document, indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: its folder does not exist")
    settings = HopSettings(
        arguments.peers, arguments.rows, arguments.width, arguments.rounds, arguments.seconds, arguments.start
    )
    results, skipped = run_all(arguments.only, arguments.repeats, settings)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)  # a pipe or a log gets whole rows too
    console.print(table(results, settings))
    for name, reason in skipped.items():
        console.print(f"{name} skipped: {reason}", markup=False)
    if arguments.json is not None:
        arguments.json.write_text(as_json(results, skipped, settings))
    return 0 if results else 2
