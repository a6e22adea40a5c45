"""A service is changed under streams: none fails, every output is what it would be, and nothing is left over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.lifecycle import rotate_keys
from cluster.secret import data_plane_keys
from tests.faults.changing import Changes
from tests.faults.load import load
from tests.faults.parts import MEMBERS, processes, wait_gone, wait_whole, wanted
from tests.integration.ray_service import RayService, complete, kill, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

TWO = {"replicas": 2}
IMPATIENT = {"limits": {"load_timeout_s": 2}}
LARGE = {"api": TWO, "router": TWO, "attention": TWO, "experts": TWO}


def full(*values: object) -> Any:
    """Parameters that belong to the full matrix."""
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.fixture
def changes(solo: RayService, checkpoint: tuple[Path, Oracle], ray_port: int) -> Iterator[Changes]:
    """Changes of the service of one of everything, which is that again at the end."""
    made = Changes(solo, checkpoint[0], ray_port)
    yield made
    made.wait_settled()
    back = made.plan()
    if back.changes:
        made.start(back).wait()


def check_made(service: RayService, version: str) -> None:
    wait_whole(service)
    assert wanted(service).version == version
    assert service.status()["spec_version"] == version


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(LARGE, id="everything"),
        *(pytest.param({part: TWO}, id=part, marks=pytest.mark.full) for part in LARGE),
        pytest.param({"experts": {"overrides": {2: TWO}}}, id="override", marks=pytest.mark.full),
        pytest.param({"experts": {"replicas": 3}}, id="three", marks=pytest.mark.full),
    ],
)
def test_up_and_down(
    solo: RayService, changes: Changes, oracle: Oracle, seed: int, sections: dict[str, dict[str, Any]]
) -> None:
    before = processes(solo)
    with load(solo, oracle, seed, num_streams=2) as streams:
        up = changes.plan(**sections)
        assert {change.how for change in up.changes} == {"live"}
        changes.start(up).wait()
        check_made(solo, up.wanted.version)
        large = processes(solo)
        assert all(before[part] <= large[part] for part in before), "what ran keeps running"
        streams.wait_flowing()
        down = changes.plan()
        changes.start(down).wait()
        check_made(solo, down.wanted.version)
    after = processes(solo)
    wait_gone({pid for part in large for pid in large[part] - after[part]})


@pytest.mark.parametrize(
    ("sections", "replaced"),
    [
        ({"attention": {"max_sequences": 32}, "experts": {"per_actor": 1}}, {"attention_nodes", "experts"}),
        full({"limits": {"request_timeout_s": 300}}, {"attention_nodes", "gateways"}),
        full({"limits": {"recovery_timeout_s": 50}}, set(MEMBERS)),
        full({"attention": {"max_sequences": 32}}, {"attention_nodes"}),
        full({"experts": {"per_actor": 1}}, {"experts"}),
        full({"experts": {"per_actor": 2, "slices": 2}}, {"experts"}),
        full({"experts": {"on_missing": "degrade"}}, {"routers"}),
    ],
)
def test_a_rolling_change(
    solo: RayService,
    changes: Changes,
    oracle: Oracle,
    seed: int,
    sections: dict[str, dict[str, Any]],
    replaced: set[str],
) -> None:
    before = processes(solo)
    with load(solo, oracle, seed, num_streams=2) as streams:
        planned = changes.plan(**sections)
        assert {change.how for change in planned.changes} == {"rolling"}
        changes.start(planned).wait()
        check_made(solo, planned.wanted.version)
        streams.wait_flowing()
    after = processes(solo)
    assert {part for part in before if not before[part] & after[part]} == replaced
    assert {part for part in before if before[part] != after[part]} == replaced
    wait_gone({pid for part in replaced for pid in before[part]})


def test_what_is_refused_changes_nothing(solo: RayService, changes: Changes) -> None:
    before, spec = processes(solo), wanted(solo)
    planned = changes.plan(model={"dtype": "bfloat16"}, attention=TWO)
    with pytest.raises(ValueError, match=r"model\.dtype: cannot be changed"):
        changes.start(planned).wait()
    assert (processes(solo), wanted(solo)) == (before, spec)
    assert complete(solo.client(), [5, 6, 7], 4).finish_reason == "length"


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        pytest.param({"experts": {"num_cpus": 50}, **IMPATIENT}, "could not be placed", id="experts"),
        pytest.param({"attention": {"num_cpus": 50}, **IMPATIENT}, "no room", id="nodes", marks=pytest.mark.full),
        full({"attention": {"cache_tokens": 1}}, "AttentionNode did not start: .*cache_to"),
    ],
)
def test_what_cannot_be_is_rolled_back(
    solo: RayService, changes: Changes, oracle: Oracle, seed: int, sections: dict[str, dict[str, Any]], reason: str
) -> None:
    before, spec = processes(solo), wanted(solo)
    with load(solo, oracle, seed, num_streams=2) as streams:
        planned = changes.plan(**sections)
        with pytest.raises(RuntimeError, match=rf"rolled back.*{reason}"):
            changes.start(planned).wait()
        wait_whole(solo)
        streams.wait_flowing()
    after = processes(solo)
    assert wanted(solo) == spec
    assert all(before[part] == after[part] for part in before)
    changes.make(experts=TWO)  # it can still be changed


@pytest.mark.full
def test_keys_that_were_changed_once_more_are_not_handed_out(
    solo: RayService, changes: Changes, tmp_path: Path
) -> None:
    """Nor those of another host, which read the same there: the plan was about the ones that it has seen."""
    before, spec, keys = processes(solo), wanted(solo), tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("the-key-that-was-planned\n")
    planned = changes.plan(api={"keys_file": str(keys)})
    keys.write_text("another-key-since-then\n")
    with pytest.raises(RuntimeError, match=r"rolled back.*holds other keys"):
        changes.start(planned).wait()
    assert (processes(solo), wanted(solo)) == (before, spec)


def test_the_data_plane_key_is_changed_under_streams(solo: RayService, oracle: Oracle, seed: int) -> None:
    """Every connection is made anew with the new key; nothing is started again, and no stream notices."""
    before, keys = processes(solo), data_plane_keys(solo.name)
    with load(solo, oracle, seed, num_streams=2) as streams:
        rotate_keys(solo.name, "auto", lambda progress: None)
        streams.wait_flowing()
    after = data_plane_keys(solo.name)
    assert (after.stage, after.generation) == (0, keys.generation + 3)
    assert not set(after.keys) & set(keys.keys)
    assert processes(solo) == before
    kill(solo.status()["controller"]["pid"])
    wait_whole(solo)
    assert processes(solo) == before, "a controller that starts again takes over what has the new key"


def test_another_change_is_refused_meanwhile(solo: RayService, changes: Changes) -> None:
    planned = changes.plan(api=TWO)
    change = changes.start(planned)
    with pytest.raises(ValueError, match="is being changed or started; try again"):
        changes.start(changes.plan(attention=TWO)).wait()
    change.wait()
    check_made(solo, planned.wanted.version)
    changes.make(experts=TWO)
    with pytest.raises(ValueError, match="was changed meanwhile; look at the plan again"):
        changes.start(planned).wait()


def test_the_controller_is_killed_in_the_middle(solo: RayService, changes: Changes, oracle: Oracle, seed: int) -> None:
    """The restarted one goes on, and whoever waits for the change waits for that."""
    planned = changes.plan(router=TWO, experts=TWO)
    victim = solo.status()["controller"]["pid"]
    with load(solo, oracle, seed, num_streams=2) as streams:
        change = changes.start(planned)
        kill(victim)
        wait_until(lambda: solo.status()["controller"]["pid"] != victim, 60, "the controller is restarted")
        assert wanted(solo).version == planned.wanted.version, "what was accepted is still known"
        change.wait()
        check_made(solo, planned.wanted.version)
        streams.wait_flowing()
    assert any("goes on with the change" in event["text"] for event in solo.status()["events"]), solo.show()
