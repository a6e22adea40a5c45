"""What a controller leaves to the one that is started after it."""

import asyncio
import time
from collections.abc import Callable

import pytest

from cluster import ledger as ledger_module
from cluster.ledger import Ledger
from cluster.members import Announcement, Known
from cluster.resolve import Service

Make = Callable[..., Service]
SAID = Announcement("node", None, 7, "ray-node", "app", "replica", {})


def known_of(num_members: int) -> Known:
    return Known({str(index): SAID for index in range(num_members)})


@pytest.fixture
def services(make: Make, ray_store: dict[str, bytes]) -> tuple[Service, Service]:
    """Two versions of one service, and a store that is empty."""
    old, new = make(), make(replicas={"min": 2, "max": 2})
    assert old.name == new.name
    assert old.version != new.version
    assert ray_store == {}
    return old, new


def test_the_next_one_finds_a_change_that_was_under_way(services: tuple[Service, Service]) -> None:
    old, new = services
    first = Ledger(old, fresh=True)
    assert not first.found
    assert not first.is_changing
    first.accept(new)
    second = Ledger(old, fresh=False)
    assert second.found
    assert second.is_changing
    assert (second.good.version, second.accepted.version) == (old.version, new.version)


def test_the_next_one_does_not_go_back_behind_a_commit(services: tuple[Service, Service]) -> None:
    old, new = services
    first = Ledger(old, fresh=True)
    first.accept(new)
    first.commit()
    second = Ledger(old, fresh=False)
    assert not second.is_changing
    assert second.good.version == second.accepted.version == new.version


@pytest.mark.parametrize("failure", ["", "no room"])
def test_a_change_that_has_ended_is_not_gone_on_with(services: tuple[Service, Service], failure: str) -> None:
    old, new = services
    first = Ledger(old, fresh=True)
    first.accept(new)
    first.end_change(failure)
    second = Ledger(old, fresh=False)
    assert not second.is_changing
    assert second.good.version == old.version
    assert second.failure == failure


def test_members_and_the_latest_events_are_left_to_the_next_one(services: tuple[Service, Service]) -> None:
    first = Ledger(services[0], fresh=True)
    for index in range(60):
        first.events.note(f"event {index}", failed=False, time_s=float(index))
    first.keep_events()
    asyncio.run(first.keep_known(known_of(2)))
    second = Ledger(services[0], fresh=False)
    assert second.known == known_of(2)
    assert [event["text"] for event in second.events.as_list()] == [f"event {index}" for index in range(10, 60)]


def test_a_service_that_is_just_started_forgets_an_earlier_one_of_its_name(services: tuple[Service, Service]) -> None:
    old, new = services
    first = Ledger(old, fresh=True)
    first.events.note("something", failed=True, time_s=1.0)
    first.keep_events()
    first.end_change("no room")
    asyncio.run(first.keep_known(known_of(1)))
    second = Ledger(new, fresh=True)
    assert not second.found
    assert second.good.version == second.accepted.version == new.version
    assert (second.failure, second.known, second.events.as_list()) == ("", Known(), [])


def test_nothing_is_written_after_all_is_forgotten(
    services: tuple[Service, Service], ray_store: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ledger_module.store_known

    def slow(name: str, known: Known) -> None:
        time.sleep(0.1)
        write(name, known)

    async def work() -> None:
        ledger = Ledger(services[0], fresh=True)
        writing = asyncio.create_task(ledger.keep_known(known_of(1)))
        await asyncio.sleep(0.02)
        await ledger.forget()
        await writing
        assert ray_store == {}
        await ledger.keep_known(known_of(2))
        ledger.events.note("too late", failed=False, time_s=1.0)
        ledger.keep_events()
        assert ray_store == {}

    monkeypatch.setattr(ledger_module, "store_known", slow)
    asyncio.run(work())


def test_of_many_who_wait_for_a_slow_write_one_writes_the_latest(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Known] = []

    def slow(_: str, known: Known) -> None:
        time.sleep(0.1)
        written.append(known)

    async def work() -> None:
        ledger = Ledger(services[0], fresh=True)
        await asyncio.gather(*(ledger.keep_known(known_of(count)) for count in range(1, 9)))

    monkeypatch.setattr(ledger_module, "store_known", slow)
    asyncio.run(work())
    assert written == [known_of(1), known_of(8)]


def test_what_has_not_changed_is_not_written(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(ledger_module, "store_events", lambda name, events: written.append(events))
    monkeypatch.setattr(ledger_module, "store_known", lambda name, known: written.append(known))
    ledger = Ledger(services[0], fresh=True)
    ledger.events.note("something", failed=False, time_s=1.0)
    for _ in range(3):
        ledger.keep_events()
        asyncio.run(ledger.keep_known(known_of(1)))
    assert len(written) == 2
