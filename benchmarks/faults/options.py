"""The command line of `python -m benchmarks.faults`."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.faults.census import KINDS
from benchmarks.faults.kill import SIGNALS
from benchmarks.faults.resize import FIELDS

NUM_KILLS = {"expert": 10}  # of other kinds: 1
NUM_CYCLES = 5
PARTS: tuple[str, ...] = ("experts", "routers", "nodes", "gateways")
NUM_REPLICAS = 2
MAX_STALL_S = 0.5  # of processes that are killed, or resized: what hangs is let go of only after a while
ATTACHED_URL = "http://127.0.0.1:8000"


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def seconds(text: str) -> float:
    """A positive, finite number of seconds, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def kills(text: str) -> list[str]:
    """The kinds to kill, in their order, from `KIND[:N]` with commas between: `expert:2,node` is expert, expert, node.

    Raises:
        argparse.ArgumentTypeError: There is no such kind, or no such count.
    """
    return repeated(text, KINDS, NUM_KILLS, 1)


def resized(text: str) -> list[str]:
    """The parts to resize, in their order, from `PART[:CYCLES]` with commas between.

    Raises:
        argparse.ArgumentTypeError: There is no such part, or no such count.
    """
    return repeated(text, FIELDS, {}, NUM_CYCLES)


def kinds_to_kill(text: str) -> list[str]:
    """The same where each is killed again and again: one of each by default."""
    return repeated(text, KINDS, {}, 1)


def parts_to_resize(text: str) -> list[str]:
    """The parts to resize in turn."""
    return repeated(text, FIELDS, {}, 1)


def repeated(text: str, names: Iterable[str], defaults: Mapping[str, int], default: int) -> list[str]:
    """Names, each as often as it is to be done, from `NAME[:N]` with commas between.

    Raises:
        argparse.ArgumentTypeError: There is no such name, or no such count.
    """
    chosen: list[str] = []
    for word in text.split(","):
        name, separator, number = word.partition(":")
        if name not in names:
            raise argparse.ArgumentTypeError(f"nothing is called {name!r}; there are {', '.join(names)}")
        chosen += [name] * (_count(word, number) if separator else defaults.get(name, default))
    return chosen


def replicas(text: str) -> dict[str, int]:
    """Replica counts from `PART=N` with commas between; parts that are not named have two.

    Raises:
        argparse.ArgumentTypeError: There is no such part, or no such count.
    """
    chosen = dict.fromkeys(PARTS, NUM_REPLICAS)
    for word in text.split(","):
        part, _, number = word.partition("=")
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"nothing is called {part!r}; there are {', '.join(PARTS)}")
        chosen[part] = _count(word, number)
    return chosen


def _count(word: str, number: str) -> int:
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} needs a whole number from 1 up at its end")
    return int(number)


def add_service(parser: argparse.ArgumentParser) -> None:
    """What every command asks of a service on Ray, and of itself."""
    add_own(parser)
    add = parser.add_argument
    add("--replicas", type=replicas, metavar="PART=N,...", help=f"of {', '.join(PARTS)} (default 2 of each)")
    add("--attach", metavar="NAME", help="use this running service on this host's Ray, instead of starting one")
    add("--url", metavar="URL", help=f"where the service of --attach answers (default {ATTACHED_URL})")
    add("--recovery", type=seconds, default=120.0, metavar="S", help="a replacement's time-out (default 120)")
    add("--hang", type=seconds, default=60.0, metavar="S", help="after that a stopped process is killed (default 60)")


def add_own(parser: argparse.ArgumentParser) -> None:
    """What every command of this package has."""
    add = parser.add_argument
    add("--model", default="demo", help="Hugging Face Mixtral directory, or demo (default); with --attach, its model")
    add("--timeout", type=seconds, default=120.0, metavar="S", help="a silent request fails after this (default 120)")
    add("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    add("--json", type=Path, metavar="FILE", help="write everything found here")


def add_load(parser: argparse.ArgumentParser, clients: int = 16) -> None:
    """The honest clients, and what they ask for."""
    add = parser.add_argument
    add("--clients", type=positive, default=clients, metavar="N", help=f"each sends one request at a time ({clients})")
    add("--requests", type=positive, default=4, metavar="N", help="different requests of each client (default 4)")
    add("--prompt-tokens", type=positive, default=64, metavar="N", help="of each request (default 64)")
    add("--output-tokens", type=positive, default=64, metavar="N", help="of each request (default 64)")


def complete_service(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fills in what follows from other arguments; ends the program where they do not fit together."""
    if arguments.attach is not None and arguments.replicas is not None:
        parser.error("--replicas is for a service that is started here; leave it out with --attach")
    if arguments.url is not None and arguments.attach is None:
        parser.error("--url is the address of a running service; name that with --attach")
    check_json(parser, arguments)
    arguments.replicas = arguments.replicas or dict.fromkeys(PARTS, NUM_REPLICAS)
    arguments.url = arguments.url or ATTACHED_URL


def check_json(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where what is found could not be written."""
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: its folder does not exist")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description="Kill a service's processes (or resize its parts) under load, and report what its clients felt.",
    )
    add_service(parser)
    add_load(parser)
    add = parser.add_argument
    add("--calm", type=seconds, default=20.0, metavar="S", help="of undisturbed load, for the figures (default 20)")
    what = f"what to kill, in this order, of {', '.join(KINDS)}; default counts: 10 experts, 1 of others"
    add("--kill", type=kills, metavar="KIND[:N],...", help=f"{what} (default expert, unless --resize is given)")
    what = f"give a part one replica more and take it away again, of {', '.join(FIELDS)}; default {NUM_CYCLES} cycles"
    add("--resize", type=resized, default=[], metavar="PART[:N],...", help=f"{what}; after the kills, if any")
    add("--signal", choices=list(SIGNALS), default="kill", help="kill: SIGKILL; stop: SIGSTOP, a process that hangs")
    what = f"exit with 1 if streams stand still for longer, nodes' reading apart (default {MAX_STALL_S:g}"
    add("--max-stall", type=seconds, metavar="S", help=f"{what}; with --signal stop any stall will do)")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program, with what to change, where they are wrong or do not fit together."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    complete_service(parser, arguments)
    if arguments.attach is not None and arguments.resize:
        parser.error("--resize changes a service that is started here; leave it out with --attach")
    if arguments.max_stall is None and arguments.signal == "kill":
        arguments.max_stall = MAX_STALL_S
    if arguments.kill is None:
        arguments.kill = [] if arguments.resize else kills("expert")
    return arguments
