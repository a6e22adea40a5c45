"""The campaign: looks for input that Manta does not stand, for so many minutes.

    make fuzz MINUTES=30
    python -m tests.fuzz [--minutes 10] [--only bytes,stops] [--seed N] [--json FILE] [--url http://127.0.0.1:PORT]

The time is shared evenly by what is run; what ends sooner leaves the rest to others of its kind. Each target shows how
many inputs it has tried and what they have reached; the smallest input of a finding is kept in build/fuzz. Exits with 1
where something was found, with 2 for bad arguments, and with 130 after Ctrl-C or SIGTERM: what it has started is
stopped by then.
"""

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manta.outcome import signals_are_ctrl_c
from spec.outcome import INTERRUPTED
from tests.fuzz import bytes as byte_targets
from tests.fuzz import http, properties, served
from tests.fuzz.outcome import Outcome
from tests.fuzz.progress import Progress
from tests.fuzz.targets import TARGETS

Part = Callable[[float, int, byte_targets.OnProgress], Outcome]  # seconds, a seed, who hears of progress


def _byte_target(name: str) -> Part:
    return lambda seconds, seed, on_progress: byte_targets.fuzz(name, seconds, seed, on_progress)


def _enumeration(name: str, requests: Callable[[], list[properties.Request]]) -> Part:
    return lambda seconds, seed, on_progress: properties.enumerate_all(name, requests, seconds, seed, on_progress)


def _mixes(seconds: float, seed: int, on_progress: byte_targets.OnProgress) -> Outcome:
    return properties.many("mixes", seconds, seed, on_progress)


KINDS: Mapping[str, Mapping[str, Part]] = {
    "bytes": {name: _byte_target(name) for name in TARGETS},
    "properties": {
        "fields": _enumeration("fields", properties.singles),
        "pairs": _enumeration("pairs", properties.pairs),
        "mixes": _mixes,
    },
    "http": {"schema": http.schema, "cost": http.cost, served.NAME: served.served},
}
"""What `--only` takes: kinds, each of which gets the same time, and their parts."""
NOT_IN_A_MINUTE = frozenset({served.NAME})  # the form of it that `make test` runs leaves these out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Look for input that Manta does not stand.")
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="how long in all (default: 10)")
    parser.add_argument("--only", type=_parts, default=None, help="kinds or parts, with commas between them")
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs (default: another each time)")
    parser.add_argument("--json", type=Path, default=None, help="write what was done and found to this file")
    what = f"of a service of this host that runs, for `{served.NAME}`, instead of starting one"
    parser.add_argument("--url", type=_url, default=None, help=what)
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only or _parts(",".join(KINDS))
    if arguments.url is not None:
        _serve_from(arguments.url, arguments.only)
    arguments.seed = random.SystemRandom().randrange(1, 1 << 31) if arguments.seed is None else arguments.seed
    return arguments


def _url(text: str) -> str:
    try:
        served.address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _serve_from(url: str, chosen: dict[str, dict[str, Part]]) -> None:
    """Lets the part that needs a service use the one at `url`."""
    for parts in chosen.values():
        if served.NAME in parts:
            parts[served.NAME] = partial(served.served, url=url)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text} was given; allowed: a number above 0")
    return minutes


def _parts(text: str) -> dict[str, dict[str, Part]]:
    chosen: dict[str, dict[str, Part]] = {}
    for word in text.split(","):
        found = {kind: dict(parts) if word == kind else {word: parts[word]}
                 for kind, parts in KINDS.items() if word == kind or word in parts}  # fmt: skip
        if not found:
            known = "; ".join(f"{kind}: {', '.join(parts)}" for kind, parts in KINDS.items())
            raise argparse.ArgumentTypeError(f"nothing is called {word!r}; there are {known}")
        for kind, parts in found.items():
            chosen.setdefault(kind, {}).update(parts)
    return chosen


def run(arguments: argparse.Namespace, console: Console) -> list[Outcome]:
    """Runs every part for its share of the time of its kind; what one leaves of it is for those that follow."""
    outcomes: list[Outcome] = []
    with Progress(console) as progress:
        for parts in arguments.only.values():
            left_s = arguments.minutes * 60 / len(arguments.only)
            for number, (name, part) in enumerate(parts.items()):
                share_s = max(left_s, 0.0) / (len(parts) - number)
                progress.begin(name, share_s)
                outcomes.append(part(share_s, arguments.seed, progress.update))
                progress.end(outcomes[-1])
                left_s -= outcomes[-1].seconds
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Table:
    """What was done, a line a part."""
    made = Table("part", "inputs", "reached", "seconds", "peak MiB", "findings")
    for one in outcomes:
        peak = "" if one.peak_mib is None else f"{one.peak_mib:.0f}"
        found = str(len(one.findings)) if one.findings else "none"
        made.add_row(one.name, f"{one.executions:,}", one.coverage, f"{one.seconds:.0f}", peak, found)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns the exit status."""
    arguments = parse(argv)
    errors, console = Console(stderr=True), Console()
    console.print(f"seed {arguments.seed}")
    try:
        with signals_are_ctrl_c():
            outcomes = run(arguments, errors)
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        return INTERRUPTED
    console.print(table(outcomes))
    for outcome in outcomes:
        for remark in outcome.remarks:
            console.print(f"{outcome.name}: {escape(remark)}", soft_wrap=True, highlight=False)
        for finding in outcome.findings:
            kept = f" (input: {finding.path})" if finding.path else ""
            console.print(f"[red]{outcome.name}[/red]{escape(kept)}\n{escape(finding.words)}", soft_wrap=True)
    if arguments.json is not None:
        listed = [dataclasses.asdict(outcome) for outcome in outcomes]
        found = {"seed": arguments.seed, "minutes": arguments.minutes, "outcomes": listed}
        arguments.json.write_text(json.dumps(found, indent=2, default=str) + "\n")
    return 1 if any(outcome.findings for outcome in outcomes) else 0
