"""What the clients felt: the phases of a run and its disturbances, summed up. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.faults.compare import Difference
from benchmarks.faults.disturbances import Happening
from benchmarks.faults.gaps import Span, first_token_gaps, latest_before, longest_s, spans_between, token_gaps
from benchmarks.faults.load import Phase


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase: what came of its requests, and the longest times without a token."""

    name: str
    num_completed: int
    num_failed: int
    num_different: int
    num_unexcused: int
    errors: dict[str, int]
    duration_s: float
    output_tokens_per_s: float
    longest_gap_s: float
    longest_ttft_s: float
    client_cpu_share: float


@dataclass(frozen=True, slots=True)
class KindResult:
    """All disturbances of one kind. A stall is the longest gap while they lasted less the calm phase's longest.

    Args:
        took_s: Of each from which the service recovered, how long that took.
        num_failed: Requests whose end came after one of these disturbances and before the next of any kind.
        num_different: The same of requests that said something else, excused or not.
    """

    kind: str
    num: int
    took_s: tuple[float, ...]
    stall_s: float
    ttft_stall_s: float
    num_failed: int
    num_different: int
    num_unexcused: int


def summarise_phase(name: str, phase: Phase, different: Sequence[Difference]) -> PhaseResult:
    """Sums up one phase."""
    run = phase.run
    failed = [record.error for record in run.requests if record.error is not None]
    return PhaseResult(
        name=name,
        num_completed=len(run.requests) - len(failed),
        num_failed=len(failed),
        num_different=len(different),
        num_unexcused=num_unexcused(different),
        errors=dict(Counter(failed).most_common()),
        duration_s=run.duration_s,
        output_tokens_per_s=run.output_tokens_per_s,
        longest_gap_s=longest_s(token_gaps(run.requests)),
        longest_ttft_s=longest_s(first_token_gaps(run.requests)),
        client_cpu_share=run.client_cpu_s / run.duration_s if run.duration_s > 0 else 0.0,
    )


def num_unexcused(different: Sequence[Difference]) -> int:
    """How many differences nothing excuses."""
    return sum(one.excuse is None for one in different)


def summarise_kinds(
    calm: PhaseResult, disturbed: Phase, happenings: Sequence[Happening], different: Sequence[Difference]
) -> list[KindResult]:
    """Sums up the disturbances, kind by kind in the order in which the kinds first came.

    A disturbance lasts until the next one is made, or the load ends: its effects need not end with the recovery.
    """
    moments_s = [happening.began_s for happening in happenings]
    spans = spans_between(moments_s, disturbed.ended_s)
    failed_s = [answer.ended_s for answer in disturbed.answers if answer.record.error is not None]
    results: list[KindResult] = []
    for kind in dict.fromkeys(happening.kind for happening in happenings):
        places = [place for place, happening in enumerate(happenings) if happening.kind == kind]
        theirs = [one for one in different if latest_before(moments_s, one.ended_s) in places]
        within = [spans[place] for place in places]
        results.append(
            KindResult(
                kind=kind,
                num=len(places),
                took_s=tuple(took_s for place in places if (took_s := happenings[place].took_s) is not None),
                stall_s=_beyond(calm.longest_gap_s, disturbed, within, first=False),
                ttft_stall_s=_beyond(calm.longest_ttft_s, disturbed, within, first=True),
                num_failed=sum(latest_before(moments_s, ended_s) in places for ended_s in failed_s),
                num_different=len(theirs),
                num_unexcused=num_unexcused(theirs),
            )
        )
    return results


def _beyond(calm_s: float, disturbed: Phase, within: Sequence[Span], *, first: bool) -> float:
    """The longest gap within these spans less the calm phase's; never below zero."""
    gaps = (first_token_gaps if first else token_gaps)(disturbed.run.requests)
    return max(0.0, longest_s(gaps, within) - calm_s)
