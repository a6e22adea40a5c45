"""Requests that come when they come: their moments, what they got, and what a run of them is judged by."""

import asyncio
import random
from collections import Counter

import pytest

from benchmarks.client import Server
from benchmarks.faults.arrivals import Level, poisson_moments, send_at, status_of, summarise, tokens_per_s
from benchmarks.faults.open_loop import parse, table, verdict
from benchmarks.load import RequestRecord
from benchmarks.report import open_console
from tests.benchmarks.fake_server import FakeServer


def level(factor: float, goodput: float, **statuses: int) -> Level:
    named = {name.strip("_"): number for name, number in statuses.items()}
    return Level(factor, factor * 10, 60.0, named, {}, goodput)


def test_moments_are_as_many_as_the_rate_says_and_know_nothing_of_each_other(seed: int) -> None:
    moments = poisson_moments(50.0, 100.0, random.Random(seed))
    assert 4500 < len(moments) < 5500
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 100
    counts = Counter(int(moment) for moment in moments)
    mean = sum(counts.values()) / 100
    variance = sum((counts[second] - mean) ** 2 for second in range(100)) / 100
    assert 0.5 < variance / mean < 2, "a Poisson count's variance is its mean"


def test_requests_do_not_wait_for_each_other() -> None:
    fake, ended = FakeServer(), list[RequestRecord]()
    with fake as url:
        server = Server("fake", url, "m", 10.0)
        began_s, records = asyncio.run(send_at(server, [[1], [2]], 6, [0.0, 0.001, 0.002, 0.1], ended.append))
    assert fake.most_at_once >= 3
    assert [body["prompt"] for body in fake.bodies[:3]] == [[1], [2], [1]]
    assert len(ended) == 4
    assert records[3].sent_s - began_s >= 0.1
    found = summarise(0.9, 20.0, 0.2, began_s, records)
    assert found.statuses == {"200": 4}
    assert not found.num_wrong


def test_refusals_are_told_from_failures() -> None:
    fake = FakeServer(fault="refuse")
    with fake as url:
        server = Server("fake", url, "m", 10.0)
        began_s, records = asyncio.run(send_at(server, [[1]], 2, [0.0, 0.05], lambda record: None))
    found = summarise(3, 20.0, 0.1, began_s, records)
    assert found.statuses == {"200": 1, "429": 1}
    assert (found.errors, found.num_wrong) == ({}, 0)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "200"),
        ("HTTP 429: the queue is full", "429"),
        ("HTTP 503: x", "503"),
        ("ClientOSError: cut", "failed"),
        ("the stream ended before [DONE]", "failed"),
    ],
)
def test_the_status_of_a_request(error: str | None, status: str) -> None:
    assert status_of(RequestRecord(0.0, error=error)) == status


def test_only_tokens_of_whole_answers_within_the_time_count() -> None:
    whole = RequestRecord(0.0, (1.0, 2.0, 3.0, 4.0), 8)
    broken = RequestRecord(0.0, (1.0, 2.0), 2, "ClientOSError: cut")
    assert tokens_per_s([whole, broken], 1.5, 3.5) == pytest.approx(2 * 2 / 2.0)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([level(0.9, 100, _200=9), level(3, 91, _200=9, _429=20)], []),
        ([level(0.9, 100, _200=9), level(3, 89, _200=9, _429=20)], ["goodput at 3 x capacity: 89 tokens/s, and 100"]),
        ([level(0.5, 50, _200=9), level(0.9, 100, _200=9), level(3, 60, _429=9)], ["goodput at 3 x"]),
        ([level(0.9, 100, _200=9, _503=2, failed=1)], ["at 0.9 x capacity 3 requests got neither 200 nor 429"]),
        ([level(3, 10, _200=9)], []),
    ],
)
def test_the_verdict(levels: list[Level], words: list[str]) -> None:
    found = verdict(levels)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_the_table_names_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print(table([level(3, 91, _200=9, _429=20)]))
    assert "9 x 200, 20 x 429" in capsys.readouterr().out


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse(["--factors", "3,0.5", "--seconds", "15"])
    assert arguments.factors == (0.5, 3.0)
    assert arguments.overrides == {"attention.max_queued": 32}
    for words, message in [
        (["--factors", "0"], "--factors"),
        (["--attach", "demo", "--max-queued", "4"], "--max-queued is for a service that is started here"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            parse(words)
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
