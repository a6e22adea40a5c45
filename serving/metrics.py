"""Counters and latencies of one gateway, in plain Python numbers: the hot path knows no Prometheus.

`serving.exposition` adds up the snapshots of all gateways and nodes when somebody scrapes.
Series and meanings follow vLLM's.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

TTFT_BUCKETS_S = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
INTER_TOKEN_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
REQUEST_BUCKETS_S = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip


class HistogramSnapshot(TypedDict):
    """`counts[i]` observations fell into bucket i (not cumulative); the last one is beyond every bound."""

    bounds_s: list[float]
    counts: list[int]
    sum_s: float


class GatewaySnapshot(TypedDict):
    """What one gateway counted since it started."""

    prompt_tokens: int
    generation_tokens: int
    successes: dict[str, int]  # by finished reason
    failures: dict[str, int]  # by error code
    degraded_requests: int
    histograms: dict[str, HistogramSnapshot]  # by series name, without the prefix


class NodeSnapshot(TypedDict):
    """What one attention node reports."""

    running: int
    waiting: int
    cache_used_tokens: int
    cache_total_tokens: int
    preemptions_total: int


MetricsSnapshot = GatewaySnapshot | NodeSnapshot


class Histogram:
    """Counts of durations in seconds; `observe` costs one bisection."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, value_s: float, num: int = 1) -> None:
        """Counts `num` observations of `value_s` each."""
        self._counts[bisect_left(self._bounds_s, value_s)] += num
        self._sum_s += value_s * num

    def snapshot(self) -> HistogramSnapshot:
        """A copy that no later observation changes."""
        return {"bounds_s": list(self._bounds_s), "counts": list(self._counts), "sum_s": self._sum_s}


HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", TTFT_BUCKETS_S),
    "inter_token_latency_seconds": ("Between two tokens of one sequence.", INTER_TOKEN_BUCKETS_S),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", REQUEST_BUCKETS_S),
    "request_queue_time_seconds": ("Waiting for admission at an attention node.", REQUEST_BUCKETS_S),
    "request_prefill_time_seconds": ("From admission to the first token.", REQUEST_BUCKETS_S),
    "request_decode_time_seconds": ("From the first token to the last.", REQUEST_BUCKETS_S),
}


@dataclass
class GatewayMetrics:
    """Everything one gateway counts. Sequences count one by one: n = 3 is three successes."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    successes: Counter[str] = field(default_factory=Counter[str])
    failures: Counter[str] = field(default_factory=Counter[str])
    degraded_requests: int = 0
    running_requests: int = 0
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
    )

    def snapshot(self) -> GatewaySnapshot:
        """Plain JSON-able numbers for another gateway to add to its own."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "successes": dict(self.successes),
            "failures": dict(self.failures),
            "degraded_requests": self.degraded_requests,
            "histograms": {name: histogram.snapshot() for name, histogram in self.histograms.items()},
        }


class SequenceTimer:
    """Records one sequence's life; a call per message, however many tokens it carries.

    All times are readings of one monotonic clock in seconds, given by the caller.
    """

    __slots__ = ("_arrival_s", "_ended", "_first_s", "_inter_token", "_last_s", "_metrics", "_num_prompt", "_queue_s")

    def __init__(self, metrics: GatewayMetrics, num_prompt: int, arrival_s: float) -> None:
        self._metrics = metrics
        self._num_prompt = num_prompt
        self._arrival_s = arrival_s
        self._first_s: float | None = None
        self._last_s = arrival_s
        self._queue_s = 0.0
        self._inter_token = metrics.histograms["inter_token_latency_seconds"]
        self._ended = False

    def tokens(self, num: int, now_s: float, queue_s: float = 0.0) -> None:
        """`num` tokens came; tokens that came together share the time since those before them."""
        self._metrics.generation_tokens += num
        if self._first_s is None:
            self._first(now_s, queue_s)
        elif num:
            self._inter_token.observe((now_s - self._last_s) / num, num)
        self._last_s = now_s

    def _first(self, now_s: float, queue_s: float) -> None:
        self._first_s = now_s
        self._queue_s = queue_s
        self._metrics.prompt_tokens += self._num_prompt
        histograms = self._metrics.histograms
        to_first_s = now_s - self._arrival_s
        histograms["time_to_first_token_seconds"].observe(to_first_s)
        histograms["request_queue_time_seconds"].observe(queue_s)
        histograms["request_prefill_time_seconds"].observe(max(0.0, to_first_s - queue_s))

    def finished(self, reason: str, now_s: float) -> None:
        """The sequence ended as it should; a second call counts nothing."""
        if self._ended:
            return
        self._ended = True
        self._metrics.successes[reason] += 1
        histograms = self._metrics.histograms
        histograms["e2e_request_latency_seconds"].observe(now_s - self._arrival_s)
        if self._first_s is not None:
            histograms["request_decode_time_seconds"].observe(now_s - self._first_s)

    def aborted(self) -> None:
        """The client left before the end; after `finished` this counts nothing."""
        if not self._ended:
            self._ended = True
            self._metrics.successes["abort"] += 1
