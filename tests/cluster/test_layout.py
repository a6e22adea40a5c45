"""Which expert actors a service has, where further replicas may run, and on which core."""

from pathlib import Path
from typing import Any

import pytest

from cluster.layout import bundle_of, core_for, expert_settings, layout_of
from cluster.placement import host_rule
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import spec_from_dict
from tests.random_checkpoint import make_checkpoint

ROOM = Room((2.0,), own=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("layout") / "model"
    make_checkpoint(directory, seed=1, num_experts=4)
    return directory


def service(model: Path, limits: dict[str, Any] | None = None, room: Room = ROOM, **experts: Any) -> Service:
    return resolve(spec_from_dict({"model": {"path": str(model)}, "experts": experts, "limits": limits or {}}), room)


def test_a_layout_is_another_one_if_its_actors_are(model: Path) -> None:
    before = layout_of(service(model, per_actor=2)).version
    assert layout_of(service(model, per_actor=2, replicas=3)).version == before
    assert layout_of(service(model, per_actor=2, overrides={0: {"replicas": 2}})).version == before
    others: list[Any] = [
        {"per_actor": 1},
        {"per_actor": 2, "slices": 2},
        {"per_actor": 2, "num_cpus": 0.5},
        {"per_actor": 2, "placement": "pack"},
        {"per_actor": 2, "pin_cores": False},
        {"per_actor": 2, "labels": {"zone": "a"}},
        {"per_actor": 2, "overrides": {0: {"num_cpus": 0.5}}},
        {"per_actor": 2, "limits": {"orphan_timeout_s": 1}},
    ]
    versions = {layout_of(service(model, **other)).version for other in others}
    assert len(versions | {before}) == len(others) + 1


def test_what_a_file_leaves_open_follows_from_the_room(model: Path) -> None:
    """On a cluster every replica takes a CPU, and there are as many as leave room for the other parts."""
    own, cluster = service(model, room=Room((8.0,), own=True)), service(model, room=Room((4.0, 4.0), own=False))
    assert [bundle_of(own, shard) for shard in layout_of(own).shards] == [{"CPU": 0.2}] * 8
    assert [bundle_of(cluster, shard) for shard in layout_of(cluster).shards] == [{"CPU": 1.0}] * 5


def test_what_a_replica_reserves(model: Path) -> None:
    asked = service(
        model, per_actor=2, overrides={0: {"num_gpus": 0.5, "num_cpus": 2, "accelerator_type": "H200"}}, num_cpus=1
    )
    first, second = layout_of(asked).shards
    assert bundle_of(asked, first) == {"CPU": 2, "GPU": 0.5, "accelerator_type:H200": 0.001}
    assert bundle_of(asked, second) == {"CPU": 1}
    assert (expert_settings(asked, first).device, expert_settings(asked, second).device) == ("cuda", "cpu")


def test_cores_are_shared_out_while_there_are_enough() -> None:
    assert core_for([], 3, "auto", 4) == 0
    assert core_for([0, 2], 3, "auto", 4) == 1
    assert core_for([0, None], 5, "auto", 4) is None
    assert core_for([0, 1, 2, 3, 0], 6, True, 4) == 1
    assert core_for([], 1, False, 4) is None


@pytest.mark.parametrize(
    ("placement", "rule"),
    [("strict_spread", "!in(a,b)"), ("strict_pack", "in(a,b)"), ("spread", "!in(a)"), ("pack", None)],
)
def test_hosts_of_further_replicas(placement: str, rule: str | None) -> None:
    assert host_rule(placement, {"b", "a"}, {"a"}, {"a", "c"}) == rule


def test_spreading_is_a_wish() -> None:
    assert host_rule("spread", {"a", "b"}, {"a", "b"}, {"a", "b"}) is None
    assert host_rule("spread", {"a", "b"}, {"a"}, {"a"}) is None
    assert host_rule("strict_spread", set(), set(), {"a"}) is None
