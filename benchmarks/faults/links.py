"""Links between parts that are slow, late, cut or silent: `python -m benchmarks.faults.links`.

    python -m benchmarks.faults.links [--links cut:20,reset,delay,slow,silent] [--hops node,router,expert] [--hold 2]
        [--over unix,tcp]

A service in threads of this process (two of every part, float32) answers greedy requests, each once undisturbed, then
calmly, for the figures, and then while one link after the other has a fault for `--hold` seconds; first over Unix
sockets, then, with a new service, over sealed TCP. Every output, the undisturbed ones too, must be what transformers
answers in float32, but for near-ties (see compare.py); of a checkpoint that transformers does not load or know how to
route, what it was undisturbed.

It has neither Ray nor a controller. So it does not show whether a link that merely fails has a controller replace parts
that are healthy: the links between parts and the controller are Ray's, and no proxy stands in them.

cut: the link to one part breaks after a random number of bytes, in the middle of a frame as a rule, and again each time
that it is made; reset: all links to one part break; delay: everything to and from all parts of a hop comes 20 ms later;
slow: 200 kB/s; silent: nothing goes through to one part, then the link breaks, as when a firewall forgets it.

Exits with 1 where a request failed, an output differs and nothing excuses it, or no link broke where one should have;
with 2 where nothing could be measured. A short form: `--links cut:2,reset:1,delay:1,silent:1 --calm 5 --hold 1`.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.client import Server
from benchmarks.faults.command import gate_margins, judge, make_prompts, run_phases
from benchmarks.faults.compare import Difference, GateMargin, differences
from benchmarks.faults.display import Display
from benchmarks.faults.in_threads import HOPS, Links, service_in_threads
from benchmarks.faults.link_proxy import WHOLE, Fault
from benchmarks.faults.load import Phase, Prompts, SteadyLoad
from benchmarks.faults.options import add_load, add_own, check_json, repeated, seconds
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.report import Report, as_json, kind_table, phase_table, remarks
from benchmarks.faults.summary import num_unexcused
from benchmarks.faults.theirs import NoReference, transformers_answers
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from model.config import read_config

TRANSPORTS: tuple[str, ...] = ("unix", "tcp")
KINDS: tuple[str, ...] = ("cut", "reset", "delay", "slow", "silent")
NUM_FAULTS = {"cut": 5}  # of each hop; of other kinds: 1
DELAY_S, BYTES_PER_S = 0.02, 200e3
MAX_CUT_BYTES = {"node": 1000}  # prompts and tokens pass there; of other hops, where rows do: 50,000
SPARE_POSITIONS = 8


class LinkFault:
    """Gives links of one hop a fault for a while; see `Disturbance`."""

    def __init__(self, kind: str, hop: str, links: Links, hold_s: float, rng: random.Random) -> None:
        self.name = f"{kind} to {hop}"
        self.note = ""
        self._kind, self._hop = kind, hop
        self._hold_s = hold_s
        self._rng = rng
        self._all = links[hop]
        self._one = rng.choice(links[hop])

    @property
    def num_cut(self) -> int:
        """Connections that the links of its hop have broken so far."""
        return sum(proxy.num_cut for proxy in self._all)

    async def do(self) -> float:
        """Gives them the fault."""
        before, began_s = self.num_cut, time.perf_counter()
        chosen = self._all if self._kind in ("delay", "slow") else [self._one]
        for proxy in chosen:
            proxy.set(self._fault())
        if self._kind == "reset":
            await asyncio.to_thread(self._one.reset)
        self.note = f"for {self._hold_s:g} s"
        await asyncio.sleep(self._hold_s)
        for proxy in chosen:
            proxy.set(WHOLE)
        if self._kind == "silent":
            await asyncio.to_thread(self._one.reset)
        self.note += f", {self.num_cut - before} connections broken"
        return began_s

    async def wait_until_over(self) -> float:
        """Returns at once: the links are whole again."""
        return time.perf_counter()

    def _fault(self) -> Fault:
        if self._kind == "cut":
            return Fault(cut_after=self._rng.randrange(1, MAX_CUT_BYTES.get(self._hop, 50_000)))
        faults = {"delay": Fault(delay_s=DELAY_S), "slow": Fault(bytes_per_s=BYTES_PER_S), "silent": Fault(silent=True)}
        return faults.get(self._kind, WHOLE)


def named(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What argparse calls for words with commas between them, all of `names`."""

    def parse_names(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in names:
                raise argparse.ArgumentTypeError(f"nothing is called {word!r}; there are {', '.join(names)}")
        return words

    return parse_names


def kinds(text: str) -> list[str]:
    """The kinds of faults, in their order, from `KIND[:N]` with commas between."""
    return repeated(text, KINDS, NUM_FAULTS, 1)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program, with what to change, where they are wrong."""
    what = "Links between parts that are slow, late, cut or silent."
    parser = argparse.ArgumentParser("python -m benchmarks.faults.links", description=what)
    add_own(parser)
    add_load(parser, clients=8)
    add = parser.add_argument
    what = f"of {', '.join(KINDS)}, on each hop; default counts: 5 cuts, 1 of others (default all)"
    add("--links", type=kinds, default=kinds(",".join(KINDS)), metavar="KIND[:N],...", help=what)
    what = f"at whose part's end, of {', '.join(HOPS)} (default all)"
    add("--hops", type=named(HOPS), default=list(HOPS), metavar="PART,...", help=what)
    what = f"what the parts speak, of {', '.join(TRANSPORTS)}: Unix sockets, or sealed TCP (default both)"
    add("--over", type=named(TRANSPORTS), default=list(TRANSPORTS), metavar="SOCKETS,...", help=what)
    add("--hold", type=seconds, default=2.0, metavar="S", help="for how long each fault lasts (default 2)")
    add("--calm", type=seconds, default=20.0, metavar="S", help="of undisturbed load, for the figures (default 20)")
    arguments = parser.parse_args(argv)
    check_json(parser, arguments)
    return arguments


@dataclass(frozen=True, slots=True)
class Found:
    """What was found over one transport.

    Args:
        num_cut: Connections that were broken.
        undisturbed: Undisturbed answers that differ from those of transformers; None: it has none.
    """

    over: str
    report: Report
    num_cut: int
    undisturbed: tuple[Difference, ...] | None

    def clean(self, breaks: bool) -> bool:
        """Whether all is as it should be; `breaks`: whether connections should have broken."""
        return self.report.clean and not num_unexcused(self.undisturbed or ()) and (self.num_cut > 0 or not breaks)


def measure(arguments: argparse.Namespace, console: Console) -> list[Found]:
    """Does everything that the arguments ask for.

    Raises:
        ModelError: The model cannot be read.
        ServiceError: The service does not start, or does not answer undisturbed requests.
    """
    directory = spec_for_model(arguments.model).model.directory
    prompts = make_prompts(read_config(directory), arguments)
    try:
        theirs = transformers_answers(directory, prompts, arguments.output_tokens)
    except NoReference as why:
        console.print(f"compared with the undisturbed answers alone: {escape(str(why))}", soft_wrap=True)
        theirs = None
    margins = gate_margins(directory, prompts, arguments.prompt_tokens + arguments.output_tokens + SPARE_POSITIONS)
    return [_measure_over(over, directory, prompts, theirs, margins, arguments, console) for over in arguments.over]


def _measure_over(
    over: str,
    directory: Path,
    prompts: Prompts,
    theirs: Phase | None,
    margins: GateMargin,
    arguments: argparse.Namespace,
    console: Console,
) -> Found:
    rng, positions = random.Random(f"{arguments.seed}/links"), arguments.prompt_tokens + arguments.output_tokens
    service = service_in_threads(directory, positions + SPARE_POSITIONS, over_tcp=over == "tcp")
    with service as (url, links), Display(console) as display:
        load = SteadyLoad(Server("links", url, "links", arguments.timeout), prompts, arguments.output_tokens)
        pairs = [(kind, hop) for kind in arguments.links for hop in arguments.hops]
        faults = [LinkFault(kind, hop, links, arguments.hold, rng) for kind, hop in pairs]
        run = asyncio.run(run_phases(load, faults, arguments.calm, rng, display))
        num_cut = sum(proxy.num_cut for proxies in links.values() for proxy in proxies)
    if theirs is None:
        return Found(over, judge(run, margins), num_cut, None)
    expected = {answer.key: answer for answer in theirs.answers}
    undisturbed = differences(expected, run.reference.answers, margins)
    return Found(over, judge(replace(run, reference=theirs), margins), num_cut, tuple(undisturbed))


def show(found: Sequence[Found], arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    console = open_console()
    for one in found:
        reference = "the undisturbed answers" if one.undisturbed is None else "those of transformers in float32"
        console.print(
            f"over {one.over}; all answers are compared with {reference}:",
            phase_table(one.report),
            kind_table(one.report.kinds),
        )
        for remark in remarks(one.report):
            console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
        differ = one.undisturbed or ()
        told = f"{len(differ)} undisturbed answers differ too, {num_unexcused(differ)} without excuse"
        console.print(f"{one.num_cut} connections were broken; {told}")
    if arguments.json is not None:
        reports = {one.over: json.loads(as_json(one.report, vars(arguments))) for one in found}
        arguments.json.write_text(json.dumps(reports, indent=2))
    breaks = bool({"cut", "reset", "silent"} & set(arguments.links))
    return 0 if all(one.clean(breaks) for one in found) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(found, arguments), progress)


if __name__ == "__main__":
    sys.exit(main())
