"""Links between parts that are slow, late, cut or silent: `python -m benchmarks.faults.links`.

    python -m benchmarks.faults.links [--links cut:20,reset,delay,slow,silent] [--hops node,router,expert] [--hold 2]

A service in threads of this process (two of every part, float32, no Ray and no controller) answers greedy requests,
each once undisturbed, then calmly, for the figures, and then while one link after the other has a fault for `--hold`
seconds. Every output must be what it was undisturbed, but for near-ties (see compare.py).

cut: the link to one part breaks after a random number of bytes, in the middle of a frame as a rule, and again each time
that it is made; reset: all links to one part break; delay: everything to and from all parts of a hop comes 20 ms later;
slow: 200 kB/s; silent: nothing goes through to one part, then the link breaks, as when a firewall forgets it.

Exits with 1 where a request failed, an output differs and nothing excuses it, or no link broke where one should have;
with 2 where nothing could be measured. A short form: `--links cut:2,reset:1,delay:1,silent:1 --calm 5 --hold 1`.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from benchmarks.client import Server
from benchmarks.faults.command import gate_margins, judge, make_prompts, run_phases
from benchmarks.faults.display import Display
from benchmarks.faults.in_threads import HOPS, Links, service_in_threads
from benchmarks.faults.link_proxy import WHOLE, Fault
from benchmarks.faults.load import SteadyLoad
from benchmarks.faults.options import add_load, add_own, check_json, repeated, seconds
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.report import Report, as_json, kind_table, phase_table, remarks
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from model.config import read_config

KINDS: tuple[str, ...] = ("cut", "reset", "delay", "slow", "silent")
NUM_FAULTS = {"cut": 5}  # of each hop; of other kinds: 1
DELAY_S, BYTES_PER_S, MAX_CUT_BYTES = 0.02, 200e3, 50_000
SPARE_POSITIONS = 8


class LinkFault:
    """Gives links of one hop a fault for a while; see `Disturbance`."""

    def __init__(self, kind: str, hop: str, links: Links, hold_s: float, rng: random.Random) -> None:
        self.name = f"{kind} to {hop}"
        self.note = ""
        self._kind = kind
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
            return Fault(cut_after=self._rng.randrange(1, MAX_CUT_BYTES))
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
    add("--hold", type=seconds, default=2.0, metavar="S", help="for how long each fault lasts (default 2)")
    add("--calm", type=seconds, default=20.0, metavar="S", help="of undisturbed load, for the figures (default 20)")
    arguments = parser.parse_args(argv)
    check_json(parser, arguments)
    return arguments


def measure(arguments: argparse.Namespace, console: Console) -> tuple[Report, int]:
    """Does everything that the arguments ask for; also returns how many connections were broken.

    Raises:
        ModelError: The model cannot be read.
        ServiceError: The service does not start, or does not answer undisturbed requests.
    """
    directory = spec_for_model(arguments.model).model.directory
    prompts = make_prompts(read_config(directory), arguments)
    rng, positions = random.Random(f"{arguments.seed}/links"), arguments.prompt_tokens + arguments.output_tokens
    with service_in_threads(directory, positions + SPARE_POSITIONS) as (url, links), Display(console) as display:
        load = SteadyLoad(Server("links", url, "links", arguments.timeout), prompts, arguments.output_tokens)
        pairs = [(kind, hop) for kind in arguments.links for hop in arguments.hops]
        faults = [LinkFault(kind, hop, links, arguments.hold, rng) for kind, hop in pairs]
        run = asyncio.run(run_phases(load, faults, arguments.calm, rng, display))
        num_cut = sum(proxy.num_cut for proxies in links.values() for proxy in proxies)
    return judge(run, gate_margins(directory, prompts, positions)), num_cut


def show(report: Report, num_cut: int, arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    console = open_console()
    console.print(phase_table(report), kind_table(report.kinds))
    for remark in remarks(report):
        console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
    console.print(f"{num_cut} connections were broken")
    if arguments.json is not None:
        arguments.json.write_text(as_json(report, vars(arguments)))
    breaks = {"cut", "reset", "silent"} & set(arguments.links)
    return 0 if report.clean and (num_cut or not breaks) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(*found, arguments), progress)


if __name__ == "__main__":
    sys.exit(main())
