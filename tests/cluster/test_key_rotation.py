"""The data-plane key of a running service is changed: at each moment, every two processes have a key in common."""

import asyncio
import itertools
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import key_rotation as rotation_module
from cluster.key_rotation import KeyRotation
from cluster.names import key_name
from cluster.secret import KEY_BYTES, DataPlaneKeys, data_plane_keys, forget_data_plane_key, new_keys, next_step
from transport.credentials import Credentials

Store = dict[bytes, bytes]


def test_whoever_is_a_step_behind_has_a_key_in_common_with_the_others() -> None:
    steps = [new_keys()]
    for _ in range(3):
        steps.append(next_step(steps[-1]))
    for before, after in itertools.pairwise(steps):
        assert set(before.keys) & set(after.keys)
    assert [step.stage for step in steps] == [0, 1, 2, 0]
    assert [step.generation for step in steps] == [0, 1, 2, 3]
    assert [len(step.keys) for step in steps] == [1, 2, 2, 1]
    assert steps[0].keys[0] not in steps[3].keys, "the old one is valid no more"
    assert steps[1].keys[0] == steps[0].keys[0], "nobody uses the next one before all accept it"
    assert steps[2].keys[0] == steps[3].keys[0]
    assert all(len(key) == KEY_BYTES for step in steps for key in step.as_bytes)
    assert not any(key in repr(step) for step in steps for key in step.keys)


def test_the_first_who_asks_makes_the_key(ray_store: Store) -> None:
    keys = data_plane_keys("one")
    assert data_plane_keys("one") == keys != data_plane_keys("two")
    forget_data_plane_key("one")
    assert data_plane_keys("one") != keys


def test_a_key_of_before_keys_could_be_changed_is_read(ray_store: Store) -> None:
    ray_store[key_name("one")] = bytes(range(KEY_BYTES))
    assert data_plane_keys("one").as_bytes == (bytes(range(KEY_BYTES)),)


class Service:
    """Processes that take the keys of a step when they are told, in any order: some, or never."""

    def __init__(self, num: int, deaf: int = 0) -> None:
        self.processes = [Credentials(*data_plane_keys("one").as_bytes) for _ in range(num)]
        self.generations = [0] * num
        self.deaf = deaf
        self.events: list[str] = []

    def check(self) -> None:
        for first, second in itertools.combinations(self.processes, 2):
            assert set(first.keys) & set(second.keys)

    async def set_keys(self, keys: DataPlaneKeys) -> list[str]:
        """The first half are expert actors, the others members, which hear of it one at each look."""
        for process in self.processes[: len(self.processes) // 2]:
            process.replace(keys.as_bytes)
            self.check()
        return []

    def behind(self, generation: int) -> list[str]:
        members = range(len(self.processes) // 2, len(self.processes))
        late = [index for index in members if self.generations[index] < generation]
        if late and late[0] >= self.deaf:
            self.processes[late[0]].replace(data_plane_keys("one").as_bytes)
            self.generations[late[0]] = generation
            self.check()
        return [f"node {index}" for index in late]

    def rotation(self) -> KeyRotation:
        fleet: Any = SimpleNamespace(set_keys=self.set_keys)
        return KeyRotation("one", fleet, self.behind, lambda text, failed=False: self.events.append(text))


async def ended(rotation: KeyRotation) -> dict[str, object]:
    while rotation.status()["state"] == "running":
        await asyncio.sleep(0.01)
    return rotation.status()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, ray_store: Store) -> None:
    monkeypatch.setattr(rotation_module, "POLL_S", 0.001)
    monkeypatch.setattr(rotation_module, "STEP_TIMEOUT_S", 0.3)


def test_every_process_has_the_new_key_alone_in_the_end() -> None:
    async def run() -> None:
        service = Service(8)
        old = data_plane_keys("one").keys[0]
        rotation = service.rotation()
        rotation.start()
        with pytest.raises(ValueError, match="is being changed already"):
            rotation.start()
        status = await asyncio.wait_for(ended(rotation), 30.0)
        assert status == {"generation": 3, "state": "settled", "error": ""}
        (new,) = data_plane_keys("one").keys
        assert new != old
        assert all(process.keys == (bytes.fromhex(new),) for process in service.processes)
        assert service.events == ["the data-plane key was changed"]

    asyncio.run(run())


def test_a_part_that_does_not_follow_keeps_the_old_key_valid_until_it_does() -> None:
    """It is named; asked again, the change goes on where it was."""

    async def run() -> None:
        service = Service(8, deaf=99)
        old = data_plane_keys("one").keys[0]
        rotation = service.rotation()
        rotation.start()
        status = await asyncio.wait_for(ended(rotation), 30.0)
        assert status["state"] == "stopped"
        assert "node 4" in str(status["error"])
        assert "goes on with it" in str(status["error"])
        assert old in data_plane_keys("one").keys
        assert not any(key in json.dumps([status, service.events]) for key in data_plane_keys("one").keys)
        service.deaf = 0
        rotation.start()
        assert (await asyncio.wait_for(ended(rotation), 30.0))["state"] == "settled"
        assert old not in data_plane_keys("one").keys

    asyncio.run(run())


def test_a_part_that_misses_the_last_step_alone_accepts_the_old_key_until_the_next_change() -> None:
    async def run() -> None:
        service = Service(4)
        hears = service.behind

        def behind(generation: int) -> list[str]:
            service.deaf = 99 if generation == 3 else 0
            return hears(generation)

        service.behind = behind
        rotation = service.rotation()
        rotation.start()
        status = await asyncio.wait_for(ended(rotation), 30.0)
        assert (status["state"], status["generation"]) == ("settled", 3)
        assert "node 2, node 3 did not take the next keys; only they accept the old key yet" in str(status["error"])
        rotation.start()
        assert await asyncio.wait_for(ended(rotation), 30.0) == {"generation": 6, "state": "settled", "error": ""}
        assert {process.keys for process in service.processes} == {data_plane_keys("one").as_bytes}

    asyncio.run(run())


def test_a_controller_that_is_started_again_goes_on_with_it() -> None:
    async def run() -> None:
        service = Service(4, deaf=99)
        first = service.rotation()
        first.start()
        await asyncio.sleep(0.05)
        await first.stop()
        service.deaf = 0
        second = service.rotation()
        second.resume()
        assert (await asyncio.wait_for(ended(second), 30.0))["state"] == "settled"
        assert {process.keys for process in service.processes} == {data_plane_keys("one").as_bytes}
        third = service.rotation()
        third.resume()
        assert third.status()["state"] == "settled", "nothing is begun unasked"

    asyncio.run(run())


def test_nothing_is_written_once_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that came back after the service was ended would be the next one's of this name."""
    writes, written = threading.Event(), threading.Event()

    def slow(service: str, keys: DataPlaneKeys) -> None:
        writes.set()
        time.sleep(0.2)
        written.set()

    monkeypatch.setattr(rotation_module, "store_data_plane_keys", slow)

    async def run() -> None:
        rotation = Service(2).rotation()
        rotation.start()
        assert await asyncio.to_thread(writes.wait, 30.0)
        await rotation.stop()
        assert written.is_set()

    asyncio.run(run())
