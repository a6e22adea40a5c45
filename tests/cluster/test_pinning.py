"""The cores that replicas are pinned to, on the hosts that they come to. Replicas and hosts are stood in for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import fleet as fleet_module
from cluster.fleet import ExpertFleet
from cluster.layout import Layout, layout_of
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import ShardPlan, spec_from_dict
from tests.random_checkpoint import make_checkpoint

HOSTS = {"a": 4, "b": 4}  # their cores


class Placed:
    """A replica that comes to the hosts in turn."""

    def __init__(
        self,
        service: Service,
        layout: Layout,
        shard: ShardPlan,
        replica: int,
        reserve: object,
        core_on: Any,
        *rest: Any,
    ) -> None:
        self.layout, self.shard, self.replica = layout, shard, replica
        self.host, self.core, self.leaving = "", None, False
        self._core_on: Callable[[str, int], int | None] = core_on

    def arrive(self) -> tuple[str, int | None]:
        self.host = sorted(HOSTS)[self.shard.index % 2]
        self.core = self._core_on(self.host, HOSTS[self.host])
        return self.host, self.core


@pytest.fixture
def arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[tuple[str, int | None]]]:
    make_checkpoint(tmp_path / "model", seed=1, num_experts=12)
    monkeypatch.setattr(fleet_module, "ExpertKeeper", Placed)
    monkeypatch.setattr(ExpertFleet, "_start", lambda fleet: None)

    async def published() -> None:
        pass

    def arrived(num_actors: int, **experts: Any) -> Counter[tuple[str, int | None]]:
        """How many replicas come to each core of each host."""
        data = {"model": {"path": str(tmp_path / "model")}, "experts": {"per_actor": 12 // num_actors, **experts}}
        service = resolve(spec_from_dict(data), Room((4.0, 4.0), own=False))
        monkeypatch.setattr(fleet_module, "num_reserved", lambda *given: num_actors // 2)
        fleet, layout = ExpertFleet(service, lambda *given, **more: None, published), layout_of(service)
        added: list[Any] = fleet.grow(layout, dict.fromkeys(range(num_actors), 1))
        return Counter(one.arrive() for one in added)

    return arrived


@pytest.mark.parametrize("pin", ["auto", True])
def test_each_host_has_cores_of_its_own(arrive: Callable[..., Counter[Any]], pin: object) -> None:
    """Six replicas on two hosts of four cores: none shares a core, though one host has not six."""
    assert arrive(6, slices=1, pin_cores=pin) == {(host, core): 1 for host in HOSTS for core in range(3)}


def test_a_host_with_too_few_pins_none_unless_told(arrive: Callable[..., Counter[Any]]) -> None:
    assert arrive(12, slices=1) == {("a", None): 6, ("b", None): 6}
    shared = arrive(12, slices=1, pin_cores=True)
    assert sorted(shared.values()) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_replicas_on_gpus_are_not_pinned(arrive: Callable[..., Counter[Any]]) -> None:
    assert arrive(6, slices=1, num_gpus=1) == {("a", None): 3, ("b", None): 3}


@pytest.mark.parametrize(("num_gpus", "of_first", "pinned"), [(0, 1, 5), (1, 0, 1)])
def test_a_shard_of_another_kind_than_the_others(
    arrive: Callable[..., Counter[Any]], num_gpus: int, of_first: int, pinned: int
) -> None:
    """A shard's own `num_gpus` decides, not that of the others."""
    found = arrive(6, slices=1, num_gpus=num_gpus, overrides={0: {"num_gpus": of_first}})
    assert sum(count for (_, core), count in found.items() if core is not None) == pinned
