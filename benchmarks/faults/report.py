"""Shows what a run with disturbances found, as tables and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.faults.compare import Difference
from benchmarks.faults.disturbances import Happening
from benchmarks.faults.footprint import Footprint
from benchmarks.faults.summary import KindResult, PhaseResult
from benchmarks.load import ratio
from benchmarks.machine import machine

MOST_SHOWN = 10  # differences; the JSON has all


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found. `began_s` is the moment from which the report counts the disturbances' times."""

    calm: PhaseResult
    disturbed: PhaseResult
    kinds: tuple[KindResult, ...]
    happenings: tuple[Happening, ...]
    differences: tuple[Difference, ...]
    began_s: float
    footprints: tuple[Footprint, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether no request failed, nothing unexcused differs, and the service recovered every time."""
        phases = (self.calm, self.disturbed)
        recovered = all(happening.failure is None for happening in self.happenings)
        return recovered and not any(phase.num_failed or phase.num_unexcused for phase in phases)


def phase_table(report: Report) -> Table:
    """One row for the calm phase and one for the disturbed."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    shown.add_column("phase", no_wrap=True)
    for heading in ("seconds", "ok", "failed", "differ", "out tok/s", "ratio", "longest gap ms", "TTFT ms", "client"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.caption = (
        "differ: other output than undisturbed (in brackets: those that a near-tie excuses). longest gap: between two "
        "tokens of a stream. TTFT: the longest. client: processor share that measuring took."
    )
    for phase in (report.calm, report.disturbed):
        shown.add_row(*_phase_row(phase, report.calm))
    return shown


def _phase_row(phase: PhaseResult, calm: PhaseResult) -> list[str]:
    relative = ratio(phase.output_tokens_per_s, calm.output_tokens_per_s)
    return [
        phase.name,
        f"{phase.duration_s:.1f}",
        str(phase.num_completed),
        _alarm(phase.num_failed),
        _differing(phase.num_different, phase.num_unexcused),
        f"{phase.output_tokens_per_s:.1f}",
        "-" if relative is None else f"{relative:.2f}x",
        _ms(phase.longest_gap_s),
        _ms(phase.longest_ttft_s),
        f"{phase.client_cpu_share:.0%}",
    ]


def kind_table(kinds: Sequence[KindResult]) -> Table:
    """One row for each kind of disturbance."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    shown.add_column("disturbed", no_wrap=True)
    for heading in ("times", "recovered s", "stall ms", "TTFT stall ms", "failed", "differ"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.caption = (
        "recovered: until as much served as before, median / longest. stalls: longest gap and longest TTFT, less those "
        "of the calm phase."
    )
    for kind in kinds:
        took = f"{median(kind.took_s):.1f} / {max(kind.took_s):.1f}" if kind.took_s else "-"
        stalls = (_ms(kind.stall_s), _ms(kind.ttft_stall_s))
        differing = _differing(kind.num_different, kind.num_unexcused)
        shown.add_row(kind.kind, str(kind.num), took, *stalls, _alarm(kind.num_failed), differing)
    return shown


def footprint_table(footprints: Sequence[Footprint]) -> Table:
    """One row for each process that lived from the first look to the last."""
    shown = Table(box=box.SIMPLE, caption_justify="left")
    for heading in ("process", "pid"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("memory MiB", "descriptors"):
        shown.add_column(heading, justify="right")
    shown.caption = "after each cycle of a resize, of the processes that stayed."
    for one in footprints:
        memory = " ".join(f"{mib:.0f}" for mib in one.memory_mib)
        shown.add_row(one.kind, str(one.pid), memory, " ".join(map(str, one.descriptors)))
    return shown


def remarks(report: Report) -> list[str]:
    """What the tables do not say: why requests failed, what differed, what did not recover."""
    lines: list[str] = []
    for phase in (report.calm, report.disturbed):
        lines += [f"{phase.name}: {count} failed: {message}" for message, count in phase.errors.items()]
    for happening in report.happenings:
        if happening.failure is not None:
            lines.append(f"{happening.kind} ({happening.note}): {happening.failure}")
    shown = sorted(report.differences, key=lambda one: one.excuse is not None)
    lines += [_difference_words(one) for one in shown[:MOST_SHOWN]]
    if len(shown) > MOST_SHOWN:
        lines.append(f"{len(shown) - MOST_SHOWN} more differ")
    return lines


def _difference_words(one: Difference) -> str:
    client, index = one.key
    margins = {"tokens": one.token_margin, "gates": one.gate_margin}
    told = ", ".join(f"{what} {margin:.1e}" for what, margin in margins.items() if margin is not None)
    return (
        f"client {client}, request {index}: output {one.position} is {one.got} instead of {one.expected}, "
        f"{one.excuse or 'not excused'} (margins: {told or 'none'})"
    )


def as_json(report: Report, arguments: dict[str, Any]) -> str:
    """Everything found, with the arguments and the machine."""
    document = {
        "arguments": arguments,
        "machine": machine(),
        "clean": report.clean,
        "phases": [asdict(report.calm), asdict(report.disturbed)],
        "kinds": [asdict(kind) for kind in report.kinds],
        "disturbances": [_happening_json(one, report.began_s) for one in report.happenings],
        "footprints": [asdict(one) for one in report.footprints],
        "differences": [_difference_json(one, report.began_s) for one in report.differences],
    }
    return json.dumps(document, indent=2, default=str) + "\n"


def _happening_json(one: Happening, origin_s: float) -> dict[str, Any]:
    began = {"kind": one.kind, "note": one.note, "began_s": one.began_s - origin_s}
    return {**began, "recovered_after_s": one.took_s, "failure": one.failure}


def _difference_json(one: Difference, origin_s: float) -> dict[str, Any]:
    return {**asdict(one), "ended_s": one.ended_s - origin_s, "excuse": one.excuse}


def _alarm(number: int) -> str:
    return f"[red]{number}[/red]" if number else "0"


def _differing(number: int, unexcused: int) -> str:
    if not number:
        return "0"
    words = f"{number} ({number - unexcused})"
    return f"[red]{words}[/red]" if unexcused else words


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"
