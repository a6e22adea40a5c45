"""The arithmetic of stalls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults.gaps import Span, first_token_gaps, latest_before, longest_s, spans_between, token_gaps
from benchmarks.load import RequestRecord

STREAM = RequestRecord(1.0, (2.0, 2.25, 5.0))
CUT = RequestRecord(4.0, (4.5, 8.5), error="cut off")
REFUSED = RequestRecord(4.0, error="HTTP 503")


def test_gaps_of_streams_and_before_them() -> None:
    assert list(token_gaps([STREAM, CUT, REFUSED])) == [Span(2.0, 2.25), Span(2.25, 5.0), Span(4.5, 8.5)]
    assert list(first_token_gaps([STREAM, CUT, REFUSED])) == [Span(1.0, 2.0), Span(4.0, 4.5)]


def test_the_longest_of_those_that_overlap() -> None:
    gaps = list(token_gaps([STREAM, CUT]))
    assert longest_s(gaps) == 4.0
    assert longest_s(gaps, [Span(0.0, 4.5)]) == 2.75  # the gap from 4.5 on only touches it
    assert longest_s(gaps, [Span(2.1, 2.2)]) == 0.25
    assert longest_s(gaps, [Span(9.0, 10.0), Span(4.6, 4.7)]) == 4.0
    assert longest_s(gaps, [Span(9.0, 10.0)]) == 0.0
    assert longest_s([]) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8).map(sorted), st.floats(100, 200))
def test_spans_between_cover_everything_from_the_first_moment_on(moments_s: list[float], end_s: float) -> None:
    spans = spans_between(moments_s, end_s)
    assert len(spans) == len(moments_s)
    assert sum(span.length_s for span in spans) == pytest.approx(end_s - moments_s[0])


def test_the_latest_moment_before() -> None:
    assert [latest_before([1.0, 2.0], time_s) for time_s in (0.5, 1.0, 1.9, 3.0)] == [None, 0, 0, 1]
