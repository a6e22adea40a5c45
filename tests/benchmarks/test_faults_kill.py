"""Kills of real processes, and how their replacement is seen."""

import asyncio
import os
import random
import time

import pytest

from benchmarks.faults.census import KINDS, counts, serving
from benchmarks.faults.disturbances import DisturbanceError, disturb
from benchmarks.faults.kill import Kill, Observed
from tests.benchmarks.fake_service import HOST, NUMBERS, FakeService


def observed(service: FakeService, *, recovery_s: float = 10.0, hang_s: float = 10.0) -> Observed:
    return Observed(service.status, counts(serving(service.status())), HOST, recovery_s, hang_s)


def kill(kind: str, service: FakeService, how: str = "kill", **limits: float) -> Kill:
    return Kill(kind, how, observed(service, **limits), random.Random(1))


async def run(disturbance: Kill) -> float:
    """Does it; returns the seconds until it was over."""
    began_s = await disturbance.do()
    return await disturbance.wait_until_over() - began_s


def test_the_census_counts_what_serves() -> None:
    with FakeService() as service:
        assert counts(serving(service.status())) == NUMBERS
        status = service.status()
        status["experts"][0]["replicas"][0]["state"] = "loading"
        assert counts(serving(status))["expert"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_a_kind_dies_and_is_replaced(kind: str) -> None:
    with FakeService(heals_s=0.5) as service:
        before = service.pids(kind)
        disturbance = kill(kind, service)
        took_s = asyncio.run(run(disturbance))
        after = service.pids(kind)
    assert (len(before - after), len(after)) == (1, len(before))
    assert disturbance.note == f"pid {(before - after).pop()}, SIGKILL"
    assert 0.5 <= took_s < 5


def test_recovered_is_when_the_replacement_serves_and_over_when_the_dead_one_is_forgotten() -> None:
    with FakeService(heals_s=0.1, forgets_s=4.0) as service:
        began_s = time.perf_counter()
        took_s = asyncio.run(run(kill("router", service)))
        lasted_s = time.perf_counter() - began_s
    assert took_s < 3.0
    assert lasted_s >= 4.1


def test_a_stopped_process_that_nobody_ends_is_killed() -> None:
    with FakeService(heals_s=0.1) as service:
        disturbance = kill("node", service, "stop", hang_s=0.6)
        took_s = asyncio.run(run(disturbance))
    assert took_s >= 0.6
    assert "SIGSTOP; nobody ended it in 0.6 s" in disturbance.note


def test_a_stopped_process_is_killed_when_the_run_is_interrupted() -> None:
    async def interrupted(disturbance: Kill) -> None:
        await disturbance.do()
        await asyncio.wait_for(disturbance.wait_until_over(), 0.3)

    with FakeService(heals_s=100.0) as service:
        before = service.pids("router")
        disturbance = kill("router", service, "stop")
        with pytest.raises(TimeoutError):
            asyncio.run(interrupted(disturbance))
        deadline_s = time.monotonic() + 5
        while len(before & service.pids("router")) > 1:
            assert time.monotonic() < deadline_s, "the stopped process is still there"
            time.sleep(0.02)
    assert "was still there at the end" in disturbance.note


@pytest.mark.parametrize(
    ("heals_s", "forgets_s", "message"),
    [(100.0, 0.0, "time: 1 of 2 serve as router, .* is still listed"), (0.0, 100.0, "time: [0-9]+ is still listed")],
)
def test_a_service_that_does_not_recover(heals_s: float, forgets_s: float, message: str) -> None:
    with FakeService(heals_s, forgets_s) as service, pytest.raises(DisturbanceError, match=message):
        asyncio.run(run(kill("router", service, recovery_s=0.5)))


def test_a_controller_that_does_not_answer_for_a_while() -> None:
    async def silent_for_a_while(disturbance: Kill, service: FakeService) -> float:
        began_s = await disturbance.do()
        service.silent = True
        asyncio.get_running_loop().call_later(0.6, setattr, service, "silent", False)
        return await disturbance.wait_until_over() - began_s

    with FakeService(heals_s=0.0) as service:
        assert asyncio.run(silent_for_a_while(kill("controller", service), service)) >= 0.6


def test_there_must_be_somebody_to_kill_here() -> None:
    with FakeService() as service:
        there = Observed(service.status, counts(serving(service.status())), "elsewhere", 1.0, 1.0)
        with pytest.raises(DisturbanceError, match="no node serves on this host"):
            asyncio.run(Kill("node", "kill", there, random.Random(1)).do())


def test_a_schedule_of_kills_hits_everybody_in_turn_and_leaves_no_descriptor_open() -> None:
    with FakeService(heals_s=0.0) as service:
        descriptors = len(os.listdir("/proc/self/fd"))
        kills = [kill(kind, service) for kind in ("expert", "router", "expert")]
        happenings = asyncio.run(disturb(kills, random.Random(1), lambda happening: None, max_pause_s=0.1))
        assert len(os.listdir("/proc/self/fd")) - descriptors <= 3  # of the sleepers that replaced them
    assert [(one.kind, one.failure) for one in happenings] == [("expert", None), ("router", None), ("expert", None)]
    assert len({one.note for one in happenings}) == 3
