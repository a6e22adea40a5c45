"""Hours of load below capacity, with a kill now and then and a resize now and then: `python -m benchmarks.faults.soak`.

    python -m benchmarks.faults.soak [--hours 1] [--share 0.7] [--kill expert,router,node,controller] [--kill-every 60]
                                     [--resize experts,routers,nodes] [--resize-every 600] [--max-slope MIB_PER_HOUR]

Every request is answered once undisturbed; then, for `--calm` seconds, as fast as the service can. Then clients send at
`--share` of that rate for `--hours`, while the kinds of `--kill` are killed in turn, and the parts of `--resize` given
a replica more, which is taken away again. Every output must be what it was undisturbed, but for near-ties.

Exits with 1 where a request failed (those that the kill of a gateway costs are counted apart), an output differs and
nothing excuses it, the service did not recover, or a process gains more than `--max-slope`; with 2 where nothing could
be measured.
A short form: `--hours 0.025 --calm 8 --kill-every 15 --resize-every 40 --look-every 4`.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.faults.command import Run, check_reference, gate_margins, judge, load_while, make_prompts, open_target
from benchmarks.faults.display import Display
from benchmarks.faults.disturbances import Disturbance, Happening, once
from benchmarks.faults.footprint import Footprints
from benchmarks.faults.kill import Kill
from benchmarks.faults.load import SteadyLoad
from benchmarks.faults.options import add_load, add_service, complete_service, kinds_to_kill, parts_to_resize, seconds
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.report import Report, as_json, kind_table, phase_table, remarks
from benchmarks.faults.resize import resizes
from benchmarks.faults.service import Target
from benchmarks.faults.slopes import HOUR_S, MemoryLog, Slope
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from manta.outcome import signals_are_ctrl_c
from model.config import read_config

KILLED: tuple[str, ...] = ("expert", "router", "node", "controller")
RESIZED: tuple[str, ...] = ("experts", "routers", "nodes")

Due = tuple[float, Callable[[], Disturbance]]  # seconds from the beginning, and what is to be done then


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program, with what to change, where they are wrong or do not fit together."""
    what = "Hours of load below capacity, with a kill and a resize now and then."
    parser = argparse.ArgumentParser("python -m benchmarks.faults.soak", description=what)
    add_service(parser)
    add_load(parser)
    add = parser.add_argument
    add("--hours", type=seconds, default=1.0, metavar="H", help="how long (default 1)")
    add("--share", type=seconds, default=0.7, metavar="X", help="of what the service can do (default 0.7)")
    add("--calm", type=seconds, default=60.0, metavar="S", help="in which it shows what it can do (default 60)")
    what = f"in turn (default {','.join(KILLED)}; gateway too, whose streams end with it)"
    add("--kill", type=kinds_to_kill, default=list(KILLED), metavar="KIND,...", help=what)
    add("--kill-every", type=seconds, default=60.0, metavar="S", help="(default 60)")
    add("--resize", type=parts_to_resize, default=list(RESIZED), metavar="PART,...", help="in turn (default all)")
    add("--resize-every", type=seconds, default=600.0, metavar="S", help="(default 600)")
    add("--look-every", type=seconds, default=30.0, metavar="S", help="at the memory of all processes (default 30)")
    add("--max-slope", type=seconds, metavar="MIB", help="an hour, of any process; left out: it is told, not judged")
    arguments = parser.parse_args(argv)
    complete_service(parser, arguments)
    if arguments.attach is not None:
        parser.error("--attach: a soak resizes, so it needs a service that is started here; leave it out")
    return arguments


def schedule(target: Target, arguments: argparse.Namespace, rng: random.Random) -> Iterator[Due]:
    """What is to be done when, without end: kills at one pace and resizes at another."""
    assert target.spec is not None, "the service was started here"
    changes = resizes(arguments.resize, target.spec, target.observed, Footprints())
    pairs = list(zip(changes[::2], changes[1::2], strict=True))  # one more, and back
    kills = ((number * arguments.kill_every, kind) for number, kind in enumerate(itertools.cycle(arguments.kill), 1))
    grown = ((number * arguments.resize_every, pair) for number, pair in enumerate(itertools.cycle(pairs), 1))
    next_kill, next_change = next(kills), next(grown)
    while True:
        if next_kill[0] <= next_change[0]:
            due_s, kind = next_kill
            yield due_s, lambda kind=kind: Kill(kind, "kill", target.observed, rng)
            next_kill = next(kills)
        else:
            due_s, pair = next_change
            for change in pair:
                yield due_s, lambda change=change: change
            next_change = next(grown)


async def disturb_on_time(
    planned: Iterator[Due], for_s: float, on_happening: Callable[[Happening], None]
) -> list[Happening]:
    """Does what is due, one after the other, until the time is over or the service did not recover."""
    began_s, happenings = time.perf_counter(), list[Happening]()
    for due_s, make in planned:
        if due_s > for_s:
            await asyncio.sleep(max(0.0, began_s + for_s - time.perf_counter()))
            break
        await asyncio.sleep(max(0.0, began_s + due_s - time.perf_counter()))
        if time.perf_counter() - began_s > for_s:
            break  # what was done before took so long
        happenings.append(await once(make()))
        on_happening(happenings[-1])
        if happenings[-1].failure is not None:
            break
    return happenings


async def run(
    target: Target, load: SteadyLoad, arguments: argparse.Namespace, display: Display
) -> tuple[Run, list[Slope]]:
    """The answers, the calm phase, and the hours.

    Raises:
        ServiceError: Undisturbed requests fail.
    """
    display.phase("undisturbed answers", sum(map(len, load.prompts)))
    reference = await load.run(display.request, logprobs=True)
    check_reference(reference, load.output_len)
    display.phase(f"as fast as it can, for {arguments.calm:g} s")
    calm, _ = await load_while(load, asyncio.sleep(arguments.calm), display)
    requests_per_s = len(calm.answers) / (calm.ended_s - calm.began_s)
    paced = replace(load, interval_s=len(load.prompts) / (arguments.share * requests_per_s))
    rate = arguments.share * requests_per_s
    display.phase(f"{arguments.share:g} of that ({rate:.1f} requests/s), for {arguments.hours:g} h")
    log = MemoryLog()
    looking = asyncio.ensure_future(log.take_every(arguments.look_every, target.observed.serving))
    planned = schedule(target, arguments, random.Random(f"{arguments.seed}/disturbances"))
    try:
        work = disturb_on_time(planned, arguments.hours * HOUR_S, display.happening)
        disturbed, happenings = await load_while(paced, work, display)
    finally:
        looking.cancel()
    return Run(reference, calm, disturbed, happenings), log.slopes()


def wrong(report: Report, slopes: Sequence[Slope], max_slope: float | None) -> list[str]:
    """What is wrong, a line each; nothing where all is well."""
    lines = [f"{one.kind}: {one.failure}" for one in report.happenings if one.failure is not None]
    by_gateways = sum(one.num_failed for one in report.kinds if one.kind == "gateway")
    failed = report.calm.num_failed + report.disturbed.num_failed - by_gateways
    if failed:
        lines.append(f"{failed} requests failed: {report.calm.errors} {report.disturbed.errors}")
    differ = report.calm.num_unexcused + report.disturbed.num_unexcused
    if differ:
        lines.append(f"{differ} outputs differ, and nothing excuses them")
    if max_slope is not None:
        steep = [one for one in slopes if one.mib_per_hour > max_slope]
        lines += [f"{one.kind} {one.pid} gains {one.mib_per_hour:.1f} MiB an hour" for one in steep]
    return lines


def slope_table(slopes: Sequence[Slope]) -> Table:
    """A row for each process, the steepest first."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    shown.add_column("process")
    for heading in ("pid", "minutes", "first MiB", "last MiB", "MiB an hour"):
        shown.add_column(heading, justify="right")
    for one in slopes:
        memory = f"{one.first_mib:.0f}", f"{one.last_mib:.0f}", f"{one.mib_per_hour:+.1f}"
        shown.add_row(one.kind, str(one.pid), f"{one.seconds / 60:.1f}", *memory)
    return shown


def measure(arguments: argparse.Namespace, console: Console) -> tuple[Report, list[Slope]]:
    """Does everything that the arguments ask for.

    Raises:
        ModelError, SpecError, ServiceError, ServerError: Nothing can be measured.
    """
    directory = spec_for_model(arguments.model).model.directory
    prompts = make_prompts(read_config(directory), arguments)
    with open_target(arguments, console) as target, signals_are_ctrl_c(), Display(console) as display:
        load = SteadyLoad(target.server, prompts, arguments.output_tokens)
        found, slopes = asyncio.run(run(target, load, arguments, display))
    margins = gate_margins(directory, prompts, arguments.prompt_tokens + arguments.output_tokens)
    return judge(found, margins), slopes


def show(report: Report, slopes: Sequence[Slope], arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    lines = wrong(report, slopes, arguments.max_slope)
    console = open_console()
    console.print(phase_table(report), kind_table(report.kinds), slope_table(slopes))
    for remark in remarks(report):
        console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
    for line in lines or ["no request failed, no output differs, and the service recovered every time"]:
        console.print(escape(line), soft_wrap=True)
    if arguments.json is not None:
        write_json(arguments.json, report, slopes, lines, arguments)
    return 1 if lines else 0


def write_json(
    path: Path, report: Report, slopes: Sequence[Slope], lines: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Everything that was found, and how."""
    found = json.loads(as_json(report, vars(arguments)))
    found |= {"slopes": [asdict(one) for one in slopes], "wrong": list(lines)}
    path.write_text(json.dumps(found, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(*found, arguments), progress)


if __name__ == "__main__":
    sys.exit(main())
