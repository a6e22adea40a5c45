"""Hours, in small: what is due when, a load below capacity, memory over time, and what it is all judged by."""

import asyncio
import itertools
import os
import random
import time
from collections import Counter

import pytest
from rich.console import Console

from benchmarks.client import Server
from benchmarks.faults.census import Process
from benchmarks.faults.disturbances import DisturbanceError, Happening
from benchmarks.faults.kill import Kill, Observed
from benchmarks.faults.load import SteadyLoad
from benchmarks.faults.report import Report
from benchmarks.faults.resize import Resize
from benchmarks.faults.service import Target, spec_of
from benchmarks.faults.slopes import MemoryLog, Slope
from benchmarks.faults.soak import disturb_on_time, parse, schedule, slope_table, wrong
from benchmarks.faults.summary import KindResult, PhaseResult
from tests.benchmarks.fake_server import FakeServer

REPLICAS = {"experts": 2, "routers": 2, "nodes": 2, "gateways": 2}
OBSERVED = Observed(dict, Counter(), "here", 10.0, 10.0)


def target() -> Target:
    return Target(Server("fake", "http://127.0.0.1:1", "m"), OBSERVED, spec_of("demo", REPLICAS, 8000))


def test_kills_and_resizes_come_at_their_own_pace_and_in_turn() -> None:
    arguments = parse(
        ["--kill-every", "60", "--resize-every", "150", "--kill", "expert,node", "--resize", "routers,nodes"]
    )
    planned = [(due_s, make()) for due_s, make in itertools.islice(schedule(target(), arguments, random.Random(1)), 11)]
    kills = [(due_s, one.name) for due_s, one in planned if isinstance(one, Kill)]
    changes = [(due_s, one.note) for due_s, one in planned if isinstance(one, Resize)]
    assert kills[:4] == [(60, "expert"), (120, "node"), (180, "expert"), (240, "node")]
    assert changes[:4] == [
        (150, "router.replicas: 3"), (150, "router.replicas: 2"),
        (300, "attention.replicas: 3"), (300, "attention.replicas: 2"),
    ]  # fmt: skip
    assert [due_s for due_s, _ in planned] == sorted(due_s for due_s, _ in planned)


class Disturbing:
    """Takes a moment; fails if told to."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.note, self._fails = name, "", fails

    async def do(self) -> float:
        return time.perf_counter()

    async def wait_until_over(self) -> float:
        await asyncio.sleep(0.05)
        if self._fails:
            raise DisturbanceError("not whole again")
        return time.perf_counter()


def run(planned: list[tuple[float, Disturbing]], for_s: float) -> tuple[list[Happening], float]:
    began_s, told = time.perf_counter(), list[Happening]()
    due = ((due_s, lambda one=one: one) for due_s, one in planned)
    happenings = asyncio.run(disturb_on_time(due, for_s, told.append))
    assert told == happenings
    return happenings, time.perf_counter() - began_s


def test_what_is_due_is_done_until_the_time_is_over() -> None:
    planned = [(number * 0.1, Disturbing(str(number))) for number in range(1, 100)]
    happenings, took_s = run(planned, 0.35)
    assert [one.kind for one in happenings] == ["1", "2", "3"]
    assert took_s >= 0.35
    assert all(later.began_s - earlier.began_s > 0.04 for earlier, later in itertools.pairwise(happenings))


def test_a_service_that_does_not_recover_ends_it() -> None:
    happenings, _ = run([(0.0, Disturbing("a")), (0.0, Disturbing("b", fails=True)), (0.0, Disturbing("c"))], 60.0)
    assert [one.failure for one in happenings] == [None, "not whole again"]


def test_a_paced_client_waits_and_still_ends_at_once() -> None:
    fake = FakeServer()

    async def paced(url: str):
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(0.9, over.set)
        load = SteadyLoad(Server("fake", url, "m", 10.0), (([1],),), 2, interval_s=0.4)
        return await load.run(lambda answer: None, until=over)

    with fake as url:
        phase = asyncio.run(paced(url))
    sent = [answer.record.sent_s for answer in phase.answers]
    assert 2 <= len(sent) <= 3
    assert all(later - earlier >= 0.39 for earlier, later in itertools.pairwise(sent))
    assert phase.ended_s - phase.began_s < 5


def test_memory_is_a_line_through_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = iter(range(100, 200))
    monkeypatch.setattr("benchmarks.faults.slopes.held", lambda pid: (float(next(grown)), 5) if pid == 1 else (50.0, 5))
    log, one, other = MemoryLog(), Process("node", 1, "here"), Process("router", 2, "here")
    for look in range(6):
        log.take([one] if look < 2 else [one, other], look * 60.0)
    (slope,) = log.slopes()
    assert (slope.kind, slope.pid, slope.seconds, slope.first_mib, slope.last_mib) == ("node", 1, 300.0, 100.0, 105.0)
    assert slope.mib_per_hour == pytest.approx(60.0)
    console = Console(record=True, width=120)
    console.print(slope_table([slope]))
    assert "+60.0" in console.export_text()


def test_processes_are_looked_at_until_it_is_cancelled() -> None:
    async def look() -> MemoryLog:
        async def serving() -> list[Process]:
            return [Process("node", os.getpid(), "here")]

        log = MemoryLog()
        task = asyncio.ensure_future(log.take_every(0.01, serving))
        await asyncio.sleep(0.3)
        task.cancel()
        return log

    (slope,) = asyncio.run(look()).slopes()
    assert slope.first_mib > 10


def phase(failed: int = 0, unexcused: int = 0) -> PhaseResult:
    return PhaseResult("x", 9, failed, unexcused, unexcused, {"cut": failed} if failed else {}, 1.0, 1.0, 0.1, 0.1, 0.1)


def kind(name: str, failed: int) -> KindResult:
    return KindResult(name, 1, (1.0,), 0.0, 0.0, failed, 0, 0)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (Report(phase(), phase(), (kind("node", 0),), (), (), 0.0), None),
        (Report(phase(), phase(failed=3), (kind("gateway", 3),), (), (), 0.0), None),
        (Report(phase(), phase(failed=3), (kind("gateway", 2),), (), (), 0.0), "1 requests failed"),
        (Report(phase(), phase(unexcused=2), (), (), (), 0.0), "2 outputs differ"),
        (Report(phase(), phase(), (), (Happening("node", "", 0.0, None, "lost"),), (), 0.0), "node: lost"),
    ],
)
def test_the_verdict(report: Report, words: str | None) -> None:
    lines = wrong(report, [Slope("node", 1, 60.0, 100.0, 101.0, 60.0)], None)
    assert (words in lines[0]) if words else not lines


def test_a_slope_is_judged_where_one_is_allowed() -> None:
    report = Report(phase(), phase(), (), (), (), 0.0)
    slopes = [Slope("node", 1, 60.0, 100.0, 101.0, 60.0), Slope("router", 2, 60.0, 9.0, 9.0, 0.0)]
    assert wrong(report, slopes, 59.0) == ["node 1 gains 60.0 MiB an hour"]
    assert wrong(report, slopes, 61.0) == []


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]).kill == ["expert", "router", "node", "controller"]
    assert parse(["--kill", "gateway,expert:2"]).kill == ["gateway", "expert", "expert"]
    for words, message in [
        (["--attach", "demo"], "a soak resizes"),
        (["--kill", "rooter"], "nothing is called 'rooter'"),
        (["--share", "0"], "--share"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            parse(words)
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
