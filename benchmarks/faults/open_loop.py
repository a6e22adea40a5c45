"""Offers a service more than it can do, and reports what clients got: `python -m benchmarks.faults.open_loop`.

    python -m benchmarks.faults.open_loop [--factors 0.5,0.9,1.5,3] [--seconds 60] [--clients 32] [--max-queued 32]

First `--clients` clients find out what the service can do: each sends its next request when its last one has ended.
Then requests arrive at random moments, at each multiple of that rate in turn, whether or not others have been answered.

Exits with 1 where a request ended with another status than 200 or 429, or where the goodput at the highest rate is less
than 0.9 of that at 0.9 (or the rate next below 1); with 2 where nothing could be measured. Short form: `--seconds 15`.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.client import Server
from benchmarks.faults.arrivals import Level, poisson_moments, send_at, summarise, tokens_per_s
from benchmarks.faults.command import load_while, make_prompts, open_target
from benchmarks.faults.display import Display
from benchmarks.faults.load import Prompts, SteadyLoad
from benchmarks.faults.options import add_load, add_service, complete_service, positive, seconds
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.service import ServiceError
from benchmarks.machine import machine
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from manta.outcome import signals_are_ctrl_c
from model.config import read_config

MAX_QUEUED = 32
LEAST_SHARE = 0.9  # of the goodput below capacity that must be left above it


def factors(text: str) -> tuple[float, ...]:
    """Multiples of the capacity, with commas between them.

    Raises:
        ValueError: One is none.
    """
    return tuple(sorted(seconds(word) for word in text.split(",")))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program, with what to change, where they are wrong or do not fit together."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faults.open_loop", description="Offer more than can be done."
    )
    add_service(parser)
    add_load(parser, clients=32)
    what = "multiples of what the service can do (default 0.5,0.9,1.5,3)"
    parser.add_argument("--factors", type=factors, default=(0.5, 0.9, 1.5, 3.0), metavar="X,...", help=what)
    parser.add_argument("--seconds", type=seconds, default=60.0, metavar="S", help="of each rate (default 60)")
    what = "attention.max_queued of the service that is started here (default 32); beyond it, 429"
    parser.add_argument("--max-queued", type=positive, metavar="N", help=what)
    arguments = parser.parse_args(argv)
    complete_service(parser, arguments)
    if arguments.attach is not None and arguments.max_queued is not None:
        parser.error("--max-queued is for a service that is started here; leave it out with --attach")
    arguments.overrides = {"attention.max_queued": arguments.max_queued or MAX_QUEUED}
    return arguments


async def run(server: Server, prompts: Prompts, arguments: argparse.Namespace, display: Display) -> list[Level]:
    """Measures what the service can do, and then each rate."""
    display.phase(f"{arguments.clients} clients, for {arguments.seconds:g} s: what it can do")
    load = SteadyLoad(server, prompts, arguments.output_tokens)
    phase, _ = await load_while(load, asyncio.sleep(arguments.seconds), display)
    records = [answer.record for answer in phase.answers]
    capacity = tokens_per_s(records, phase.began_s + arguments.seconds / 3, phase.began_s + arguments.seconds)
    if capacity <= 0:
        raise ServiceError(f"no token came within {arguments.seconds:g} s; raise --seconds")
    requests_per_s = capacity / arguments.output_tokens
    rng, levels = random.Random(f"{arguments.seed}/arrivals"), list[Level]()
    flat = [prompt for client in prompts for prompt in client]
    for factor in arguments.factors:
        rate = factor * requests_per_s
        display.phase(f"{factor:g} x capacity ({rate:.1f} requests/s), for {arguments.seconds:g} s")
        moments = poisson_moments(rate, arguments.seconds, rng)
        began_s, got = await send_at(server, flat, arguments.output_tokens, moments, display.record)
        levels.append(summarise(factor, rate, arguments.seconds, began_s, got))
    return levels


def verdict(levels: Sequence[Level]) -> list[str]:
    """What is wrong, a line each; nothing where all is well."""
    wrong = [
        f"at {level.factor:g} x capacity {level.num_wrong} requests got neither 200 nor 429: {level.errors}"
        for level in levels
        if level.num_wrong
    ]
    below = [level for level in levels if level.factor < 1]
    if below and levels[-1].factor > 1:
        before, after = below[-1], levels[-1]
        if after.goodput < LEAST_SHARE * before.goodput:
            share = f"{after.goodput:.0f} tokens/s, and {before.goodput:.0f} at {before.factor:g} x"
            wrong.append(f"goodput at {after.factor:g} x capacity: {share}; at least {LEAST_SHARE} of it is needed")
    return wrong


def table(levels: Sequence[Level]) -> Table:
    """A row for each rate."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    for heading in ("x capacity", "requests/s", "seconds", "goodput tok/s"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("statuses")
    shown.caption = "goodput: output tokens of requests that completed, from a third of the time on."
    for level in levels:
        statuses = ", ".join(f"{number} x {status}" for status, number in level.statuses.items())
        figures = f"{level.factor:g}", f"{level.rate_per_s:.1f}", f"{level.seconds:g}", f"{level.goodput:.0f}"
        shown.add_row(*figures, statuses)
    return shown


def measure(arguments: argparse.Namespace, progress: Console) -> list[Level]:
    """Starts what is to be measured, and measures it."""
    prompts = make_prompts(read_config(spec_for_model(arguments.model).model.directory), arguments)
    with open_target(arguments, progress) as target, signals_are_ctrl_c(), Display(progress) as display:
        return asyncio.run(run(target.server, prompts, arguments, display))


def show(levels: Sequence[Level], arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    wrong = verdict(levels)
    console = open_console()
    console.print(table(levels))
    for line in wrong or ["only 200 and 429, and the goodput holds"]:
        console.print(escape(line), soft_wrap=True)
    if arguments.json is not None:
        write_json(arguments.json, levels, wrong, arguments)
    return 1 if wrong else 0


def write_json(path: Path, levels: Sequence[Level], wrong: Sequence[str], arguments: argparse.Namespace) -> None:
    """Everything that was found, and how."""
    found = {"machine": machine(), "levels": [asdict(level) for level in levels], "wrong": list(wrong)}
    path.write_text(json.dumps({**found, "arguments": vars(arguments)}, indent=2, default=str) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(found, arguments), progress)


if __name__ == "__main__":
    sys.exit(main())
