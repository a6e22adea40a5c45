"""What a run comes to: the throughput that disturbances cost, and whether streams stood still for too long. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.faults.report import Report
from benchmarks.faults.summary import KindResult, PhaseResult

READ_AGAIN = ("node", "resize nodes")  # disturbances after which another node reads what its new streams have so far


@dataclass(frozen=True, slots=True)
class Stall:
    """The longest stall of one kind of disturbance, which was too long. `allowed_s`: what would not have been."""

    kind: str
    stall_s: float
    allowed_s: float


def stalls(report: Report, max_stall_s: float | None) -> list[Stall]:
    """The kinds of disturbances whose longest stall was more than `max_stall_s`; None: any is allowed.

    A node's streams must be read again by another one, all at once: for that, the calm phase's longest time to a first
    token is allowed besides, when every client's prompt was read.
    """
    if max_stall_s is None:
        return []
    found = [Stall(one.kind, one.stall_s, _allowed_s(one, report.calm, max_stall_s)) for one in report.kinds]
    return [one for one in found if one.stall_s > one.allowed_s]


def _allowed_s(kind: KindResult, calm: PhaseResult, max_stall_s: float) -> float:
    return max_stall_s + (calm.longest_ttft_s if kind.kind in READ_AGAIN else 0.0)


def verdict(report: Report, max_stall_s: float | None) -> Iterator[str]:
    """Says it in words: first the throughput, then each stall that was too long."""
    calm, disturbed = report.calm.output_tokens_per_s, report.disturbed.output_tokens_per_s
    if calm > 0:
        lost = f"{1 - disturbed / calm:.1%} lost" if disturbed < calm else "nothing lost"
        yield f"throughput: {disturbed:.1f} tokens/s while disturbed, {calm:.1f} undisturbed: {lost}"
    for one in stalls(report, max_stall_s):
        yield f"{one.kind}: a stall of {one.stall_s:.3f} s, of which {one.allowed_s:.3f} s are allowed (--max-stall)"
