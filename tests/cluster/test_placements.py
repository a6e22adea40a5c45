"""Many who wait for the same group of reservations ask Ray once."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import placement as placement_module
from cluster.placement import _wait_placed  # pyright: ignore[reportPrivateUsage]
from cluster.placements import Placements

NUM_SHARDS = 256


def group(name: str) -> Any:
    return SimpleNamespace(id=name)


class Ray:
    """Places bundles at the third look."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.threads: set[str] = set()

    def read(self, group: Any) -> frozenset[int]:
        self.num_asked += 1
        self.threads.add(threading.current_thread().name)
        return frozenset(range(NUM_SHARDS)) if self.num_asked > 2 else frozenset()


def test_everybody_who_waits_shares_one_question_and_none_is_asked_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was one for each of them, 256 times the table of 256 bundles in each round."""
    fake = Ray()
    monkeypatch.setattr(placement_module, "PLACEMENTS", Placements(fake.read))
    service: Any = SimpleNamespace(spec=SimpleNamespace(limits=SimpleNamespace(load_timeout_s=30.0)))

    async def run() -> None:
        first = group("first")
        bundles: Any = [{"CPU": 1.0}] * NUM_SHARDS
        await asyncio.gather(*(_wait_placed(service, first, index, bundles) for index in range(NUM_SHARDS)))

    asyncio.run(run())
    assert fake.num_asked < 10
    assert threading.main_thread().name not in fake.threads


def test_each_group_is_asked_for_itself_and_old_answers_are_forgotten() -> None:
    asked: list[str] = []

    def read(group: Any) -> frozenset[int]:
        asked.append(group.id)
        return frozenset({0}) if group.id == "placed" else frozenset()

    placements = Placements(read)

    async def run() -> None:
        assert await placements.is_placed(group("placed"), 0)
        assert not await placements.is_placed(group("placed"), 1), "the same answer"
        assert not await placements.is_placed(group("waits"), 0)
        await asyncio.sleep(0.1)
        assert not await placements.is_placed(group("waits"), 0)

    asyncio.run(run())
    asyncio.run(run())
    assert asked == ["placed", "waits", "waits"] * 2
    assert len(placements._asked) <= 2


def test_a_failure_is_everybodys_and_the_next_one_asks_again() -> None:
    failures = iter([ConnectionError("Ray does not answer")])

    def read(group: Any) -> frozenset[int]:
        for failure in failures:
            raise failure
        return frozenset({0})

    placements = Placements(read)

    async def run() -> None:
        asked = (placements.is_placed(group("one"), 0) for _ in range(3))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [ConnectionError] * 3
        await asyncio.sleep(0.1)
        assert await placements.is_placed(group("one"), 0)

    asyncio.run(run())
