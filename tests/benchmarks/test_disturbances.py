"""Disturbances are done one after the other, each after the service has recovered from the one before."""

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest

from benchmarks.faults.disturbances import DisturbanceError, Happening, disturb


@dataclass
class FakeDisturbance:
    """Takes `lasts_s` to be over; `refuses` to be done, or the service `stays_broken`."""

    name: str
    log: list[tuple[str, float]]
    lasts_s: float = 0.01
    refuses: bool = False
    stays_broken: bool = False
    note: str = field(default="noted")

    async def do(self) -> float:
        if self.refuses:
            raise DisturbanceError("there is none")
        self.log.append((f"do {self.name}", time.perf_counter()))
        return self.log[-1][1]

    async def wait_until_over(self) -> float:
        await asyncio.sleep(self.lasts_s)
        if self.stays_broken:
            raise DisturbanceError("not whole")
        self.log.append((f"over {self.name}", time.perf_counter()))
        return self.log[-1][1]


def run(*disturbances: FakeDisturbance, max_pause_s: float = 0.0) -> list[Happening]:
    """Does them, and checks that each was reported as it ended."""
    reported: list[Happening] = []
    happenings = asyncio.run(disturb(disturbances, random.Random(1), reported.append, max_pause_s))
    assert reported == happenings
    return happenings


def test_one_after_the_other_with_pauses() -> None:
    log: list[tuple[str, float]] = []
    happenings = run(FakeDisturbance("a", log), FakeDisturbance("b", log), max_pause_s=0.4)
    assert [name for name, _ in log] == ["do a", "over a", "do b", "over b"]
    assert [(one.kind, one.began_s, one.over_s) for one in happenings] == [
        ("a", log[0][1], log[1][1]),
        ("b", log[2][1], log[3][1]),
    ]
    rng = random.Random(1)
    pauses_s = rng.uniform(0, 0.4), rng.uniform(0, 0.4)
    assert log[2][1] - log[1][1] >= pauses_s[1] - 0.01
    assert happenings[0].took_s == pytest.approx(log[1][1] - log[0][1])


@pytest.mark.parametrize("trouble", ["refuses", "stays_broken"])
def test_nothing_follows_one_that_went_wrong(trouble: str) -> None:
    log: list[tuple[str, float]] = []
    happenings = run(FakeDisturbance("a", log, **{trouble: True}), FakeDisturbance("b", log))
    (happening,) = happenings
    assert happening.failure == {"refuses": "there is none", "stays_broken": "not whole"}[trouble]
    assert happening.took_s is None
    assert "do b" not in [name for name, _ in log]
