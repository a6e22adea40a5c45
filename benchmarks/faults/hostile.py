"""Hostile clients beside honest streams, and what is left of them: `python -m benchmarks.faults.hostile`.

    python -m benchmarks.faults.hostile [--seconds 600] [--hostile 8] [--behaviours slow-headers,slow-body,...]

Honest clients stream, at first alone, for the calm figures, then beside `--hostile` clients of each behaviour: heads
and bodies that never end, streams that nobody reads, and requests that are left. Then all of them go, and after
`--settle` seconds the service's sequences, cache, memory and descriptors are looked at.

Exits with 1 where an honest request failed, where the 99th percentile of the time between two tokens was more than
`--max-ratio` times the calm one, or where sequences, blocks, descriptors or a tenth of a process's memory were left;
with 2 where nothing could be measured. A short form: `--seconds 30 --calm 15 --settle 15`.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.faults.census import Process
from benchmarks.faults.command import load_while, make_prompts, open_target
from benchmarks.faults.display import Display
from benchmarks.faults.footprint import Footprints
from benchmarks.faults.hostile_clients import BEHAVIOURS, Behaviour, HostileClients, Victim
from benchmarks.faults.load import Phase, Prompts, SteadyLoad
from benchmarks.faults.options import add_load, add_service, complete_service, positive, seconds
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.remains import Remains, listeners, wait_empty
from benchmarks.faults.report import footprint_table
from benchmarks.faults.service import Target
from benchmarks.load import LoadResult
from benchmarks.load import summarise as summarise_load
from benchmarks.machine import machine
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from manta.outcome import signals_are_ctrl_c
from model.config import read_config

NUM_HOSTILE = 8  # of each behaviour
MAX_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """What honest clients felt, alone and beside hostile ones, and what was left."""

    calm: LoadResult
    beside: LoadResult
    num_connections: Mapping[str, int]
    remains: Remains

    @property
    def ratio(self) -> float | None:
        """The 99th percentile of the time between two tokens, beside hostile clients over calm."""
        if self.calm.itl is None or self.beside.itl is None or not self.calm.itl.p99_ms:
            return None
        return self.beside.itl.p99_ms / self.calm.itl.p99_ms

    def wrong(self, max_ratio: float) -> list[str]:
        """What is wrong, a line each; nothing where all is well."""
        lines = [
            f"{one.num_failed} honest requests failed ({one.target}): {one.errors}"
            for one in (self.calm, self.beside)
            if one.num_failed
        ]
        if self.ratio is None:
            lines.append("too few tokens came to tell the time between two")
        elif self.ratio > max_ratio:
            lines.append(f"p99 between two tokens: {self.ratio:.2f} times the calm one; {max_ratio:g} times is allowed")
        return lines + self.remains.wrong()


def behaviours(text: str) -> dict[str, Behaviour]:
    """The behaviours of some names, with commas between them.

    Raises:
        argparse.ArgumentTypeError: There is no such behaviour.
    """
    for name in text.split(","):
        if name not in BEHAVIOURS:
            raise argparse.ArgumentTypeError(f"nothing is called {name!r}; there are {', '.join(BEHAVIOURS)}")
    return {name: BEHAVIOURS[name] for name in text.split(",")}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program, with what to change, where they are wrong or do not fit together."""
    what = "Hostile clients beside honest streams, and what is left of them."
    parser = argparse.ArgumentParser("python -m benchmarks.faults.hostile", description=what)
    add_service(parser)
    add_load(parser)
    add = parser.add_argument
    add("--calm", type=seconds, default=60.0, metavar="S", help="of honest streams alone (default 60)")
    add("--seconds", type=seconds, default=600.0, metavar="S", help="of hostile clients beside them (default 600)")
    add("--settle", type=seconds, default=30.0, metavar="S", help="after which nothing may be left (default 30)")
    add("--hostile", type=positive, default=NUM_HOSTILE, metavar="N", help=f"of each behaviour (default {NUM_HOSTILE})")
    what = f"of {', '.join(BEHAVIOURS)} (default all)"
    add("--behaviours", type=behaviours, default=dict(BEHAVIOURS), metavar="NAME,...", help=what)
    add("--max-ratio", type=seconds, default=MAX_RATIO, metavar="X", help=f"of p99 to calm (default {MAX_RATIO:g})")
    arguments = parser.parse_args(argv)
    complete_service(parser, arguments)
    return arguments


async def run(
    target: Target, prompts: Prompts, positions: int, arguments: argparse.Namespace, display: Display
) -> Result:
    """Calm, then hostile, then nobody.

    Raises:
        ServerError: The service does not tell what it holds.
    """
    load, looks = SteadyLoad(target.server, prompts, arguments.output_tokens), Footprints()
    display.phase(f"calm, for {arguments.calm:g} s")
    calm, _ = await load_while(load, asyncio.sleep(arguments.calm), display)
    await wait_empty(target.server, arguments.settle)
    looks.take(await _processes(target))
    victim = Victim(target.server, positions)
    hostile = HostileClients(victim, arguments.hostile, arguments.behaviours, arguments.seed)
    display.phase(f"beside {arguments.hostile} clients of each behaviour, for {arguments.seconds:g} s")
    beside, _ = await load_while(load, _for_seconds(hostile, arguments.seconds), display)
    display.phase(f"nobody, for {arguments.settle:g} s")
    _, (gauges, emptied_s) = await asyncio.gather(
        asyncio.sleep(arguments.settle), wait_empty(target.server, arguments.settle)
    )
    looks.take(await _processes(target))
    remains = Remains(gauges, emptied_s, tuple(looks.survivors()))
    length = arguments.output_tokens
    results = [summarise_load(name, arguments.clients, [one.run], length) for name, one in _named(calm, beside)]
    return Result(results[0], results[1], hostile.num_connections, remains)


def _named(calm: Phase, beside: Phase) -> tuple[tuple[str, Phase], tuple[str, Phase]]:
    return ("calm", calm), ("beside hostile clients", beside)


async def _for_seconds(hostile: HostileClients, seconds: float) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await hostile.run(over)


async def _processes(target: Target) -> list[Process]:
    port = urlsplit(target.server.base_url).port
    return [*await target.observed.serving(), *(listeners(port) if port else [])]


def table(result: Result) -> Table:
    """A row for each phase."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    shown.add_column("phase")
    for heading in ("ok", "failed", "out tok/s", "ITL p50 ms", "ITL p99 ms", "TTFT p99 ms"):
        shown.add_column(heading, justify="right", no_wrap=True)
    made = ", ".join(f"{number} {name}" for name, number in result.num_connections.items())
    shown.caption = f"hostile connections: {made}"
    for one in (result.calm, result.beside):
        itl = ("", "") if one.itl is None else (f"{one.itl.p50_ms:.1f}", f"{one.itl.p99_ms:.1f}")
        ttft = "" if one.ttft is None else f"{one.ttft.p99_ms:.0f}"
        shown.add_row(
            one.target, str(one.num_completed), str(one.num_failed), f"{one.output_tokens_per_s:.1f}", *itl, ttft
        )
    return shown


def measure(arguments: argparse.Namespace, progress: Console) -> Result:
    """Starts what is to be measured, and measures it."""
    config = read_config(spec_for_model(arguments.model).model.directory)
    prompts = make_prompts(config, arguments)
    with open_target(arguments, progress) as target, signals_are_ctrl_c(), Display(progress) as display:
        return asyncio.run(run(target, prompts, config.max_context, arguments, display))


def show(result: Result, arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    wrong = result.wrong(arguments.max_ratio)
    console = open_console()
    footprints = footprint_table(result.remains.footprints)
    footprints.caption = "before the hostile clients, and after"
    console.print(table(result), footprints)
    for line in wrong or [f"nothing was left after {result.remains.emptied_s:.1f} s; p99 ratio {result.ratio:.2f}"]:
        console.print(escape(line), soft_wrap=True)
    if arguments.json is not None:
        found = {"machine": machine(), **_plain(result), "wrong": wrong, "arguments": vars(arguments)}
        arguments.json.write_text(json.dumps(found, indent=2, default=str) + "\n")
    return 1 if wrong else 0


def _plain(result: Result) -> dict[str, Any]:
    return {**asdict(result), "ratio": result.ratio}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(found, arguments), progress)


if __name__ == "__main__":
    sys.exit(main())
