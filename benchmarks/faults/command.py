"""Kills a service's processes while clients stream from it, and reports what the clients felt.

    python -m benchmarks.faults [--model DIR] [--clients 16] [--kill expert:10,router,node,controller] [--json FILE]
    python -m benchmarks.faults --replicas experts=1,routers=1,nodes=1 --resize experts:5,nodes:5

It starts a service of its own (float32, two replicas of every part, a Ray of its own) and sends it greedy requests:
each once, for what it says undisturbed; then over and over, undisturbed at first, for the calm figures, and then while
one process after the other is killed, each at a random moment after the one before was replaced. Every output must be
what it was undisturbed, but for near-ties (see compare.py).

`--resize` gives a part one replica more and takes it away again, as `manta apply` does, and looks at the memory and the
descriptors of every process that stays.

`--signal stop` stops processes instead, as if they hung; those that nobody ends are killed after `--hang`.

Exits with 1 where a request failed, an output differs and nothing excuses it, the service did not recover, or streams
stood still for longer than `--max-stall`; with 2 where nothing could be measured. A gateway's streams end with it: with
`--kill gateway`, 1 is to be expected.
"""

import argparse
import asyncio
import random
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

from benchmarks.faults.compare import GateMargin, differences
from benchmarks.faults.display import Display
from benchmarks.faults.disturbances import Disturbance, Happening, disturb
from benchmarks.faults.exact import ExactModel
from benchmarks.faults.footprint import Footprints
from benchmarks.faults.kill import Kill
from benchmarks.faults.load import Key, Phase, Prompts, SteadyLoad
from benchmarks.faults.options import parse
from benchmarks.faults.outcome import exit_status
from benchmarks.faults.report import Report, as_json, footprint_table, kind_table, phase_table, remarks
from benchmarks.faults.resize import resizes
from benchmarks.faults.service import ServiceError, Target, TimeLimits, attached, free_port, spec_of, started
from benchmarks.faults.summary import summarise_kinds, summarise_phase
from benchmarks.faults.verdict import stalls, verdict
from benchmarks.report import open_console
from cluster.spec import spec_for_model
from manta.outcome import signals_are_ctrl_c
from manta.progress import StartDisplay
from model.config import MixtralConfig, read_config

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen: every request's first, undisturbed answer, and the two phases that are compared."""

    reference: Phase
    calm: Phase
    disturbed: Phase
    happenings: list[Happening]


def make_prompts(config: MixtralConfig, arguments: argparse.Namespace) -> Prompts:
    """Every client's prompts, drawn from the vocabulary.

    Raises:
        ServiceError: The requests are longer than the model's context.
    """
    length = arguments.prompt_tokens + arguments.output_tokens
    if length > config.max_context:
        raise ServiceError(
            f"--prompt-tokens and --output-tokens make {length} positions; the model has {config.max_context}"
        )
    special = {config.bos_token_id, *config.eos_token_ids}
    ordinary = [token_id for token_id in range(config.vocab_size) if token_id not in special]
    rng = random.Random(f"{arguments.seed}/prompts")
    return tuple(
        tuple(rng.choices(ordinary, k=arguments.prompt_tokens) for _ in range(arguments.requests))
        for _ in range(arguments.clients)
    )


def open_target(arguments: argparse.Namespace, console: Console) -> AbstractContextManager[Target]:
    """The service to disturb, as the arguments say.

    Raises:
        SpecError: The service cannot be as they say.
    """
    limits = TimeLimits(arguments.timeout, arguments.recovery, arguments.hang)
    if arguments.attach is not None:
        return attached(arguments.attach, arguments.url, limits)
    spec = spec_of(arguments.model, arguments.replicas, free_port(), getattr(arguments, "overrides", {}))
    return started(spec, limits, StartDisplay(console).update)


async def run_phases(
    load: SteadyLoad, disturbances: Sequence[Disturbance], calm_s: float, rng: random.Random, display: Display
) -> Run:
    """Runs the load once for its answers, then calm for `calm_s`, then disturbed.

    Raises:
        ServiceError: See `check_reference`.
    """
    num_requests = sum(map(len, load.prompts))
    display.phase("undisturbed answers", num_requests)
    reference = await load.run(display.request, logprobs=True)
    check_reference(reference, load.output_len)
    display.phase(f"calm, for {calm_s:g} s")
    calm, _ = await load_while(load, asyncio.sleep(calm_s), display)
    display.phase("disturbed", len(disturbances))
    disturbed, happenings = await load_while(load, disturb(disturbances, rng, display.happening), display)
    return Run(reference, calm, disturbed, happenings)


def check_reference(reference: Phase, output_len: int) -> None:
    """Raises ServiceError where an undisturbed request failed or is not whole: there is nothing to compare with."""
    failed = [answer.record.error for answer in reference.answers if answer.record.error is not None]
    if failed:
        raise ServiceError(f"{len(failed)} of {len(reference.answers)} undisturbed requests failed: {failed[0]}")
    for answer in reference.answers:
        if len(answer.token_ids) != output_len:
            raise ServiceError(
                f"an undisturbed request was answered with {len(answer.token_ids)} token ids instead of {output_len}; "
                "does the server honour return_token_ids and ignore_eos?"
            )


async def load_while(load: SteadyLoad, work: Awaitable[Result], display: Display) -> tuple[Phase, Result]:
    """Runs the load for as long as `work` lasts, and every request of it to its end."""
    over = asyncio.Event()

    async def work_until_over() -> Result:
        try:
            return await work
        finally:
            over.set()

    return await asyncio.gather(load.run(display.request_beside, until=over), work_until_over())


def gate_margins(directory: Path, prompts: Prompts, max_context: int) -> GateMargin:
    """Gate margins of requests so far, each computed once, by a model that is read when it is first needed."""
    model = cache(lambda: ExactModel(directory, max_context))

    @cache
    def compute(key: Key, output_ids: tuple[int, ...]) -> float:
        client, index = key
        return model().gate_margin([*prompts[client][index], *output_ids])

    return compute


def judge(run: Run, gate_margin: GateMargin) -> Report:
    """Compares outputs, and sums up."""
    reference = {answer.key: answer for answer in run.reference.answers}
    calm_differs, differs = (differences(reference, part.answers, gate_margin) for part in (run.calm, run.disturbed))
    calm = summarise_phase("calm", run.calm, calm_differs)
    return Report(
        calm=calm,
        disturbed=summarise_phase("disturbed", run.disturbed, differs),
        kinds=tuple(summarise_kinds(calm, run.disturbed, run.happenings, differs)),
        happenings=tuple(run.happenings),
        differences=(*calm_differs, *differs),
        began_s=run.disturbed.began_s,
    )


def measure(arguments: argparse.Namespace, console: Console) -> Report:
    """Does everything that the arguments ask for.

    Raises:
        ModelError: The model cannot be read.
        SpecError: The service cannot be as they say.
        ServiceError: There is no service, or it does not answer undisturbed requests.
        ServerError: The same.
    """
    directory = spec_for_model(arguments.model).model.directory
    prompts = make_prompts(read_config(directory), arguments)
    rng, footprints = random.Random(f"{arguments.seed}/disturbances"), Footprints()
    with open_target(arguments, console) as target, signals_are_ctrl_c(), Display(console) as display:
        load = SteadyLoad(target.server, prompts, arguments.output_tokens)
        kills = [Kill(kind, arguments.signal, target.observed, rng) for kind in arguments.kill]
        changes = [] if target.spec is None else resizes(arguments.resize, target.spec, target.observed, footprints)
        run = asyncio.run(run_phases(load, [*kills, *changes], arguments.calm, rng, display))
    # Only now, with the service gone: a model in float64 takes memory and cores that it would have missed.
    margins = gate_margins(directory, prompts, arguments.prompt_tokens + arguments.output_tokens)
    return replace(judge(run, margins), footprints=tuple(footprints.survivors()))


def show(report: Report, arguments: argparse.Namespace) -> int:
    """Prints what was found; returns the exit status."""
    console = open_console()
    console.print(phase_table(report), kind_table(report.kinds))
    if report.footprints:
        console.print(footprint_table(report.footprints))
    for remark in remarks(report):
        console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
    for line in verdict(report, arguments.max_stall):
        console.print(escape(line), soft_wrap=True)
    if arguments.json is not None:
        arguments.json.write_text(as_json(report, vars(arguments)))
    return 0 if report.clean and not stalls(report, arguments.max_stall) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, progress = parse(argv), Console(stderr=True)
    return exit_status(lambda: measure(arguments, progress), lambda found: show(found, arguments), progress)
