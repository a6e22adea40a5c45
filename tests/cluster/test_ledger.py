"""What a controller leaves to the one that is started after it."""

import asyncio
import itertools
import time
from collections.abc import Callable

import pytest

from cluster import ledger as ledger_module
from cluster import stored as stored_module
from cluster.ledger import Ledger
from cluster.members import Announcement, Known
from cluster.plain import pack
from cluster.resolve import Service
from cluster.stored import forget_service, store_failure, store_known, stored_failure, stored_known

Make = Callable[..., Service]
Store = dict[bytes, bytes]
SAID = Announcement("node", None, 7, "ray-node", "app", "replica", {})


def ledger_of(service: Service, fresh: bool) -> Ledger:
    return Ledger(service.name, pack(service), fresh)


def known_of(num_members: int) -> Known:
    return Known({str(index): SAID for index in range(num_members)})


@pytest.fixture(autouse=True)
def _no_ray(ray_store: dict[bytes, bytes]) -> None:
    """But for its store, nothing of Ray is there."""


@pytest.fixture
def services(make: Make) -> tuple[Service, Service]:
    """Two versions of one service."""
    old, new = make(), make(replicas={"min": 2, "max": 2})
    assert old.name == new.name
    assert old.version != new.version
    return old, new


def test_the_next_one_finds_a_change_that_was_under_way(services: tuple[Service, Service]) -> None:
    old, new = services
    first = ledger_of(old, fresh=True)
    assert not first.found
    assert not first.has_uncommitted
    first.accept(new)
    second = ledger_of(old, fresh=False)
    assert second.found
    assert second.has_uncommitted
    assert (second.good.version, second.accepted.version) == (old.version, new.version)


def test_the_next_one_does_not_go_back_behind_a_commit(services: tuple[Service, Service]) -> None:
    old, new = services
    first = ledger_of(old, fresh=True)
    first.accept(new)
    first.commit()
    for _ in range(2):
        assert not first.has_uncommitted
        second = ledger_of(old, fresh=False)
        assert not second.has_uncommitted
        assert second.good.version == second.accepted.version == new.version
        first.end_change("")


def test_a_change_that_has_ended_is_not_gone_on_with(services: tuple[Service, Service]) -> None:
    old, new = services
    first = ledger_of(old, fresh=True)
    for failure in ("no room", ""):
        first.accept(new)
        first.end_change(failure)
        assert not first.has_uncommitted
        second = ledger_of(old, fresh=False)
        assert not second.has_uncommitted
        assert second.good.version == old.version
        assert second.failure == failure


def test_a_failure_to_go_back_is_over_with_the_next_commit(services: tuple[Service, Service]) -> None:
    """Not only when the change has ended: what leaves may take its time, and the controller may die meanwhile."""
    old, new = services
    first = ledger_of(old, fresh=True)
    first.end_change("no room")
    first.accept(new)
    assert ledger_of(old, fresh=False).failure == "no room"
    first.commit()
    assert (first.failure, ledger_of(old, fresh=False).failure) == ("", "")


@pytest.mark.parametrize("num_deleted", range(1, 5))
def test_forgetting_that_is_interrupted_leaves_nothing_to_go_on_with(
    num_deleted: int, services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = services
    first = ledger_of(old, fresh=True)
    first.accept(new)
    deletes = itertools.count()
    delete = stored_module._internal_kv_del

    def interrupted(key: bytes, **given: bytes) -> None:
        if next(deletes) == num_deleted:
            raise InterruptedError
        delete(key, **given)

    monkeypatch.setattr(stored_module, "_internal_kv_del", interrupted)
    with pytest.raises(InterruptedError):
        forget_service(old.name)
    monkeypatch.setattr(stored_module, "_internal_kv_del", delete)
    second = ledger_of(old, fresh=False)
    assert not second.found
    assert second.accepted.version == old.version


def test_what_is_left_over_without_a_service_is_forgotten(services: tuple[Service, Service]) -> None:
    """A controller that was killed as it forgot, or a member's last word after it."""
    store_failure(services[0].name, "no room")
    store_known(services[0].name, known_of(1))
    first = ledger_of(services[0], fresh=False)
    assert (first.found, first.failure, first.known) == (False, "", Known())
    assert (stored_failure(services[0].name), stored_known(services[0].name)) == ("", Known())


def test_members_and_the_latest_events_are_left_to_the_next_one(services: tuple[Service, Service]) -> None:
    first = ledger_of(services[0], fresh=True)
    for index in range(60):
        first.events.note(f"event {index}", failed=False, time_s=float(index))
    first.keep_events()
    asyncio.run(first.keep_known(known_of(2)))
    second = ledger_of(services[0], fresh=False)
    assert second.known == known_of(2)
    assert [event["text"] for event in second.events.as_list()] == [f"event {index}" for index in range(10, 60)]


def test_a_service_that_is_just_started_forgets_an_earlier_one_of_its_name(services: tuple[Service, Service]) -> None:
    old, new = services
    first = ledger_of(old, fresh=True)
    first.events.note("something", failed=True, time_s=1.0)
    first.keep_events()
    first.end_change("no room")
    asyncio.run(first.keep_known(known_of(1)))
    second = ledger_of(new, fresh=True)
    assert not second.found
    assert second.good.version == second.accepted.version == new.version
    assert (second.failure, second.known, second.events.as_list()) == ("", Known(), [])


@pytest.mark.parametrize("clock_s", [-1e6, 0.0, 1e6])
def test_every_controller_has_a_later_epoch_whichever_way_the_clock_was_set(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch, clock_s: float
) -> None:
    service = services[0]
    now_ns = time.time_ns()
    first = ledger_of(service, fresh=True).epoch
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + int(clock_s * 1e9))
    later = [ledger_of(service, fresh=fresh).epoch for fresh in (False, True, False)]
    assert sorted({first, *later}) == [first, *later]


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_written_after_the_end(how: str, services: tuple[Service, Service], ray_store: Store) -> None:
    async def work() -> None:
        old, new = services
        ledger = ledger_of(old, fresh=True)
        ledger.accept(new)
        if how == "close":
            ledger.close()
            ray_store.clear()
        else:
            await ledger.forget()
        await ledger.keep_known(known_of(2))
        ledger.events.note("too late", failed=False, time_s=1.0)
        ledger.keep_events()
        ledger.commit()
        ledger.end_change("no room")
        ledger.accept(old)
        assert ray_store == {}

    asyncio.run(work())


def test_forgetting_waits_for_a_write_that_is_under_way(
    services: tuple[Service, Service], ray_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ledger_module.store_known

    def slow(name: str, known: Known) -> None:
        time.sleep(0.1)
        write(name, known)

    async def work() -> None:
        ledger = ledger_of(services[0], fresh=True)
        writing = asyncio.create_task(ledger.keep_known(known_of(1)))
        await asyncio.sleep(0.02)
        await ledger.forget()
        await writing
        assert ray_store == {}

    monkeypatch.setattr(ledger_module, "store_known", slow)
    asyncio.run(work())


def test_a_write_whose_caller_is_cancelled_is_waited_for(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Known] = []

    def slow(_: str, known: Known) -> None:
        time.sleep(0.1 if known == known_of(1) else 0.0)
        written.append(known)

    async def work() -> None:
        ledger = ledger_of(services[0], fresh=True)
        writing = asyncio.create_task(ledger.keep_known(known_of(1)))
        await asyncio.sleep(0.02)
        writing.cancel()
        await ledger.keep_known(known_of(2))

    monkeypatch.setattr(ledger_module, "store_known", slow)
    asyncio.run(work())
    assert written == [known_of(1), known_of(2)]


def test_of_many_who_wait_for_a_slow_write_one_writes_the_latest(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Known] = []

    def slow(_: str, known: Known) -> None:
        time.sleep(0.1)
        written.append(known)

    async def work() -> None:
        ledger = ledger_of(services[0], fresh=True)
        await asyncio.gather(*(ledger.keep_known(known_of(count)) for count in range(1, 9)))

    monkeypatch.setattr(ledger_module, "store_known", slow)
    asyncio.run(work())
    assert written == [known_of(8)]


def test_what_has_not_changed_is_not_written(
    services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(ledger_module, "store_events", lambda name, events: written.append("events"))
    monkeypatch.setattr(ledger_module, "store_known", lambda name, known: written.append("known"))
    ledger = ledger_of(services[0], fresh=True)
    ledger.events.note("something", failed=False, time_s=1.0)
    for _ in range(3):
        ledger.keep_events()
        asyncio.run(ledger.keep_known(known_of(1)))
    assert written == ["events", "known"]
