"""What was seen of each request under load, and the pure statistics over it.

Definitions, for one streamed request that produced n tokens: TTFT is the time from sending it to its first chunk; end
to end is the time to its last chunk; TPOT is (end to end - TTFT) / (n - 1), so a server gains nothing by sending
several tokens in one chunk; ITL is each gap between two chunks. Output tokens/s is the tokens of completed requests
over the wall time of the run.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: when it was sent, when each chunk of output came (seconds on one clock), and what it produced.

    `error` is None where the request completed; a failed one keeps the chunks it got, and counts in no statistic.
    """

    sent_s: float
    chunks_s: tuple[float, ...] = ()
    num_output_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Seconds from sending to the first chunk; None without one."""
        return self.chunks_s[0] - self.sent_s if self.chunks_s else None

    @property
    def e2e_s(self) -> float | None:
        """Seconds from sending to the last chunk; None without one."""
        return self.chunks_s[-1] - self.sent_s if self.chunks_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None for fewer than two tokens."""
        if not self.chunks_s or self.num_output_tokens < 2:
            return None
        return (self.chunks_s[-1] - self.chunks_s[0]) / (self.num_output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Seconds between each two chunks."""
        return [later - earlier for earlier, later in pairwise(self.chunks_s)]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One uninterrupted run against one target: its requests, its wall time, and the client's processor time."""

    requests: tuple[RequestRecord, ...]
    duration_s: float
    client_cpu_s: float = 0.0

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the requests that completed."""
        return sum(request.num_output_tokens for request in self.requests if request.error is None)

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens per second of wall time; 0.0 for a run that took none."""
        return self.num_output_tokens / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median and 99th percentile of one quantity, in milliseconds."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One target at one concurrency, all its rounds together. A spread is None where nothing could be measured."""

    target: str
    concurrency: int
    num_completed: int
    num_failed: int
    num_short: int
    errors: dict[str, int]
    duration_s: float
    num_output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    round_tokens_per_s: tuple[float, ...]
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    client_cpu_share: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile (0 to 100) of `values`, interpolated linearly between the two nearest.

    Of 10, 20, 30, 40 the 50th lies at rank 0.5 x 3 = 1.5: halfway from 20 to 30, so 25. Raises ValueError for no values
    or a percent outside 0 to 100.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; it must lie from 0 to 100")
    ordered = sorted(values)
    rank = percent / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def spread(values_s: Iterable[float | None]) -> Spread | None:
    """Spread of the seconds in `values_s`, those that are None left out; None where nothing is left."""
    measured = [value * 1000 for value in values_s if value is not None]
    if not measured:
        return None
    return Spread(sum(measured) / len(measured), percentile(measured, 50), percentile(measured, 99))


def summarise(target: str, concurrency: int, runs: Sequence[RunRecord], output_len: int) -> LoadResult:
    """Pool the runs of one target at one concurrency. `output_len` was asked for: shorter answers are counted."""
    requests = [request for run in runs for request in run.requests]
    completed = [request for request in requests if request.error is None]
    failed = [request.error for request in requests if request.error is not None]
    duration_s = sum(run.duration_s for run in runs)
    num_output_tokens = sum(run.num_output_tokens for run in runs)
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    return LoadResult(
        target=target,
        concurrency=concurrency,
        num_completed=len(completed),
        num_failed=len(failed),
        num_short=sum(request.num_output_tokens < output_len for request in completed),
        errors=dict(Counter(failed).most_common()),
        duration_s=duration_s,
        num_output_tokens=num_output_tokens,
        output_tokens_per_s=num_output_tokens * per_s,
        requests_per_s=len(completed) * per_s,
        round_tokens_per_s=tuple(run.output_tokens_per_s for run in runs),
        ttft=spread(request.ttft_s for request in completed),
        tpot=spread(request.tpot_s for request in completed),
        itl=spread(gap for request in completed for gap in request.itl_s),
        e2e=spread(request.e2e_s for request in completed),
        client_cpu_share=sum(run.client_cpu_s for run in runs) * per_s,
    )


def ratio(value: float, reference: float) -> float | None:
    """`value` over `reference`; None where the reference is zero."""
    return value / reference if reference else None
