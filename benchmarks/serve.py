"""Measures OpenAI-compatible servers under load, several side by side in one run.

    python -m benchmarks.serve manta=http://127.0.0.1:8000 vllm=http://127.0.0.1:8001 --tokenizer CHECKPOINT \
        --concurrency 1,8,32 --rounds 3 --json OUT.json

Targets take turns (A B A B) at each concurrency, so that a machine that slows down slows them all. Exits with 1 where
any request failed, with 2 where nothing could be measured.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.baseline import TransformersBaseline
from benchmarks.client import ServerError, connect
from benchmarks.load import LoadResult, RunRecord, summarise
from benchmarks.workload import PromptSource, Workload, WorkloadError, prompt_source


class Target(Protocol):
    """Something that can be put under load."""

    @property
    def name(self) -> str:
        """How the table calls it."""
        ...

    def run(self, workload: Workload, on_request: Callable[[], None]) -> RunRecord:
        """Put it under this load once."""
        ...


def positive(text: str) -> int:
    """A whole number from 1 up, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def positives(text: str) -> list[int]:
    """Whole numbers from 1 up with commas between, for argparse."""
    return [positive(part) for part in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description="Measure OpenAI-compatible servers under load."
    )
    add = parser.add_argument
    add("urls", nargs="*", metavar="URL", help="http://host:port or name=http://host:port; several take turns")
    add("--model", help="model name to ask every server for (default: the first each one lists)")
    add("--tokenizer", type=Path, help="folder with the checkpoint's tokenizer.json (default: that of --transformers)")
    add("--transformers", type=Path, metavar="DIR", help="also measure transformers' generate on this checkpoint")
    add("--input-len", type=positive, default=128, metavar="N", help="prompt tokens (default 128)")
    add("--output-len", type=positive, default=64, metavar="N", help="output tokens (default 64)")
    add("--concurrency", type=positives, default=[1, 8, 32], metavar="N,N", help="levels (default 1,8,32)")
    add("--num-prompts", type=positives, metavar="N[,N]", help="requests per run, one number or one per level")
    add("--rounds", type=positive, default=1, metavar="N", help="runs of each target at each level (default 1)")
    add("--warmup", type=int, default=4, metavar="N", help="requests sent to each target first (default 4)")
    add("--prompt-text", action="store_true", help="send prompts as text, not as token ids")
    add("--timeout", type=float, default=600.0, metavar="S", help="silence after which a request failed (default 600)")
    add("--seed", type=int, default=1, help="of the random prompts (default 1)")
    add("--json", type=Path, metavar="FILE", help="write everything measured here")
    return parser


def prompts_per_level(levels: Sequence[int], given: Sequence[int] | None) -> list[int]:
    """Requests per run for each level; by default 4 per place in flight, at least 8. Raises WorkloadError."""
    if given is None:
        return [max(8, 4 * level) for level in levels]
    if len(given) not in {1, len(levels)}:
        raise WorkloadError(f"--num-prompts has {len(given)} numbers for {len(levels)} levels; give 1, or 1 per level")
    return list(given) * (len(levels) if len(given) == 1 else 1)


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program, with what to change, where arguments do not fit together."""
    if not arguments.urls and arguments.transformers is None:
        parser.error("nothing to measure: give at least one URL, or --transformers DIR")
    if arguments.tokenizer is None and arguments.transformers is None:
        parser.error("--tokenizer DIR is needed: prompts are drawn from the checkpoint's vocabulary")
    if arguments.transformers is not None and arguments.prompt_text:
        parser.error("--transformers takes token ids of one length; leave out --prompt-text")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: its folder does not exist")


def open_targets(arguments: argparse.Namespace) -> list[Target]:
    """Reach every server, then load the baseline if asked for. Raises ServerError or WorkloadError."""
    targets: list[Target] = [connect(url, arguments.model, arguments.timeout) for url in arguments.urls]
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ServerError(f"targets need different names, and these are {', '.join(names)}; write name=URL")
    if arguments.transformers is not None:
        targets.append(TransformersBaseline(arguments.transformers))
    return targets


def measure(
    targets: Sequence[Target], source: PromptSource, counts: Sequence[int], arguments: argparse.Namespace
) -> list[LoadResult]:
    """Warm every target up, then measure each level (`counts` requests a run), the targets taking turns."""
    levels: list[int] = arguments.concurrency
    total = len(targets) * (sum(counts) * arguments.rounds + arguments.warmup)
    results: list[LoadResult] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, refresh_per_second=2, console=Console(stderr=True)) as progress:
        bar = progress.add_task("warming up", total=total)
        warmup = Workload(source.prompts("warmup", arguments.warmup), arguments.output_len, max(arguments.warmup, 1))
        for target in targets:
            target.run(warmup, lambda: progress.advance(bar))
        for level, count in zip(levels, counts, strict=True):
            runs: dict[str, list[RunRecord]] = {target.name: [] for target in targets}
            for round_ in range(arguments.rounds):
                workload = Workload(source.prompts(f"{level}/{round_}", count), arguments.output_len, level)
                for target in targets:
                    progress.update(bar, description=f"{target.name}, {level} in flight, round {round_ + 1}")
                    runs[target.name].append(target.run(workload, lambda: progress.advance(bar)))
            results += [summarise(name, level, done, arguments.output_len) for name, done in runs.items()]
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    console = report.open_console()
    try:
        counts = prompts_per_level(arguments.concurrency, arguments.num_prompts)
        folder = arguments.tokenizer or arguments.transformers
        source = prompt_source(folder, arguments.input_len, arguments.seed, as_text=arguments.prompt_text)
        results = measure(open_targets(arguments), source, counts, arguments)
    except (ServerError, WorkloadError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return 2
    console.print(report.table(results))
    for remark in report.remarks(results):
        console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
    if arguments.json is not None:
        arguments.json.write_text(report.as_json(results, vars(arguments)))
    return 1 if any(result.num_failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
