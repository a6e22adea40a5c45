"""The statistics of the load generator."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import RequestRecord, RunRecord, Spread, percentile, ratio, spread, summarise


def streamed(sent_s: float, *chunks_s: float) -> RequestRecord:
    """A completed request of one token per chunk."""
    return RequestRecord(sent_s, chunks_s, len(chunks_s))


def test_percentile_interpolates_between_neighbours() -> None:
    assert percentile([40, 10, 30, 20], 50) == 25
    assert percentile([40, 10, 30, 20], 0) == 10
    assert percentile([40, 10, 30, 20], 100) == 40
    assert percentile([7], 99) == 7


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50), st.integers(1, 99))
def test_percentile_agrees_with_the_standard_library(values: list[float], percent: int) -> None:
    expected = statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_percentile_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)
    with pytest.raises(ValueError, match="from 0 to 100"):
        percentile([1.0], 101)


def test_latencies_of_one_request() -> None:
    request = streamed(10.0, 10.5, 10.75, 11.5)
    assert request.ttft_s == 0.5
    assert request.e2e_s == 1.5
    assert request.tpot_s == 0.5
    assert request.itl_s == [0.25, 0.75]


def test_chunks_of_several_tokens_gain_nothing_in_tpot() -> None:
    assert RequestRecord(0.0, (1.0, 2.0), num_output_tokens=11).tpot_s == 0.1


def test_a_request_without_output_has_no_latency() -> None:
    request = RequestRecord(1.0)
    assert (request.ttft_s, request.e2e_s, request.tpot_s, request.itl_s) == (None, None, None, [])
    assert streamed(0.0, 1.0).tpot_s is None


def test_spread_leaves_out_what_was_not_measured() -> None:
    assert spread([0.1, None, 0.3]) == Spread(pytest.approx(200), pytest.approx(200), pytest.approx(298))
    assert spread([None]) is None


def test_summary_pools_runs_and_leaves_failures_out() -> None:
    failed = RequestRecord(0.0, (0.5,), 1, error="HTTP 503: busy")
    runs = [
        RunRecord((streamed(0.0, 1.0, 2.0), failed), duration_s=2.0, client_cpu_s=0.1),
        RunRecord((streamed(5.0, 6.0, 7.0), streamed(5.0, 6.0)), duration_s=3.0, client_cpu_s=0.4),
    ]
    result = summarise("m", 2, runs, output_len=2)
    assert (result.num_completed, result.num_failed, result.num_short) == (3, 1, 1)
    assert result.errors == {"HTTP 503: busy": 1}
    assert result.num_output_tokens == 5
    assert result.output_tokens_per_s == pytest.approx(1.0)
    assert result.requests_per_s == pytest.approx(0.6)
    assert result.round_tokens_per_s == pytest.approx((1.0, 1.0))
    assert result.client_cpu_share == pytest.approx(0.1)
    assert result.ttft is not None
    assert result.ttft.p50_ms == 1000


def test_summary_of_nothing_but_failures() -> None:
    result = summarise("m", 1, [RunRecord((RequestRecord(0.0, error="gone"),), 1.0)], output_len=4)
    assert (result.num_completed, result.num_failed, result.output_tokens_per_s) == (0, 1, 0.0)
    assert result.ttft is result.tpot is result.itl is result.e2e is None


def test_summary_does_not_depend_on_the_order_of_requests() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    requests = [streamed(t := rng.random(), t + 1 + rng.random(), t + 3 + rng.random()) for _ in range(20)]
    shuffled = rng.sample(requests, len(requests))
    one, other = (summarise("m", 4, [RunRecord(tuple(part), 2.0)], 2) for part in (requests, shuffled))
    assert one.ttft is not None
    assert other.ttft is not None
    assert one.ttft.p99_ms == pytest.approx(other.ttft.p99_ms), f"seed {seed}"


def test_ratio() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is None
