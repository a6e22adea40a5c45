"""Measures training steps: Manta's on EP × EDP ranks against transformers' Mixtral in a plain loop.

    python -m benchmarks.train [--rounds 3] [--steps 10] [--hidden 256] [--dtype float32] [--json FILE]

Every variant takes its turn in every round, each in processes of its own, and its best round (by the median step) is
shown: on a machine that does other things, the best round is the one that they disturbed least. A rank has one thread;
so two ranks are compared with two threads.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.train.variants import PAIRS, VARIANTS, Sizes, measure

TIMEOUT_S = 600.0


def build_parser() -> argparse.ArgumentParser:
    """Every option, with its default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description="Measure training steps.")
    sizes = Sizes()
    parser.add_argument("--rounds", type=int, default=3, help="turns of every variant (default: 3)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps in each turn (default: 10)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them (default: 3)")
    parser.add_argument("--hidden", type=int, default=sizes.hidden_size, help="model dimension")
    parser.add_argument("--ffn", type=int, default=sizes.ffn_size, help="an expert's hidden dimension")
    parser.add_argument("--layers", type=int, default=sizes.num_layers)
    parser.add_argument("--length", type=int, default=sizes.sequence_length, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=sizes.batch, help="sequences of a step, over all ranks")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=sizes.dtype, help="what is computed in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    sizes = Sizes(
        hidden_size=arguments.hidden,
        ffn_size=arguments.ffn,
        num_layers=arguments.layers,
        sequence_length=arguments.length,
        batch=arguments.batch,
        dtype=arguments.dtype,
    )
    taken: dict[str, list[list[float]]] = {variant.name: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        turns = [(number, variant) for number in range(arguments.rounds) for variant in VARIANTS]
        for number, variant in track(turns, "measuring", console=Console(stderr=True)):
            meeting = f"{folder}/{number}-{variant.name.replace(' ', '')}"
            taken[variant.name].append(measure(variant, sizes, arguments.warm_up, arguments.steps, meeting, TIMEOUT_S))
    speeds = {name: speed(rounds, sizes) for name, rounds in taken.items()}
    Console().print(table(speeds))
    if arguments.json is not None:
        document = {"machine": machine(), "sizes": asdict(sizes), "seconds": taken, "tokens_per_s": speeds}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def speed(rounds: Sequence[Sequence[float]], sizes: Sizes) -> float:
    """Tokens per second of the best round's median step."""
    return sizes.tokens / min(statistics.median(steps) for steps in rounds)


def table(speeds: dict[str, float]) -> Table:
    """One row for each comparison."""
    shown = Table(box=None, pad_edge=False)
    for column in ("EP x EDP", "tokens/s", "against", "tokens/s", "ratio"):
        shown.add_column(column, justify="left" if column in ("EP x EDP", "against") else "right")
    for ours, theirs in PAIRS:
        ratio = speeds[ours] / speeds[theirs]
        shown.add_row(ours, f"{speeds[ours]:.0f}", theirs, f"{speeds[theirs]:.0f}", f"{ratio:.2f}")
    return shown
