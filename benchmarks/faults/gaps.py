"""How long clients saw nothing: gaps between two tokens of one stream, and before its first. Pure.

Times are seconds of one clock. A gap belongs to every span of time that it overlaps: one that begins before a kill and
ends after it is the kill's, and one that outlasts the next kill is both kills'.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.load import RequestRecord


@dataclass(frozen=True, slots=True)
class Span:
    """From one moment to another."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s

    def overlaps(self, other: "Span") -> bool:
        """Whether they have more than a moment in common."""
        return self.start_s < other.end_s and other.start_s < self.end_s


def token_gaps(records: Iterable[RequestRecord]) -> Iterator[Span]:
    """Each gap between two chunks of one request, of failed requests too."""
    for record in records:
        for earlier, later in pairwise(record.chunks_s):
            yield Span(earlier, later)


def first_token_gaps(records: Iterable[RequestRecord]) -> Iterator[Span]:
    """From the sending of each request to its first chunk."""
    return (Span(record.sent_s, record.chunks_s[0]) for record in records if record.chunks_s)


def longest_s(gaps: Iterable[Span], within: Sequence[Span] | None = None) -> float:
    """The longest of the gaps (with `within`: of those that overlap one of these spans); 0.0 where there is none."""
    chosen = (gap for gap in gaps if within is None or any(gap.overlaps(span) for span in within))
    return max((gap.length_s for gap in chosen), default=0.0)


def spans_between(moments_s: Sequence[float], end_s: float) -> list[Span]:
    """The time from each moment to the next, and from the last to the end."""
    return [Span(start_s, stop_s) for start_s, stop_s in pairwise([*moments_s, end_s])]


def latest_before(moments_s: Sequence[float], time_s: float) -> int | None:
    """The place of the last of the (rising) moments that is not after `time_s`; None where there is none."""
    found = [place for place, moment_s in enumerate(moments_s) if moment_s <= time_s]
    return found[-1] if found else None
