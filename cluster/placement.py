"""Where a service's expert actors may run.

The first replica of every shard is reserved together, in one placement group with the service file's strategy. Each
further replica has a group of its own, so that it can come and go alone; label selectors keep it away from the others
(or beside them), as the strategy says.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import PlacementGroupID
from ray._private.state import available_resources_per_node  # pyright: ignore[reportUnknownVariableType]
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,  # pyright: ignore[reportUnknownVariableType]
    placement_group_table,  # pyright: ignore[reportUnknownVariableType]
    remove_placement_group,
)

from cluster.layout import Bundle, Layout, bundle_of
from cluster.names import first_group_name, group_name, groups_prefix
from cluster.placements import Placements
from cluster.resolve import Service
from cluster.spec import ShardPlan

HOST_LABEL = "ray.io/node-id"  # every Ray node has it
SHOWN = ("CPU", "GPU")
PLACING_S = 1.0  # a place that is free is found in milliseconds
FIRST_PAUSE_S = 0.05


@dataclass(frozen=True)
class Reservation:
    """A bundle of a placement group."""

    group: PlacementGroup
    bundle: int


async def reserve_first(service: Service, layout: Layout, shard: ShardPlan) -> Reservation:
    """Reserves the first replica of every shard together; an earlier controller's reservation is taken over.

    Returns:
        That of `shard`, as soon as it has a host: after a host was lost, the others need not have one again.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    name = first_group_name(service.name, layout.version)
    bundles = [bundle_of(service, each) for each in layout.shards]
    selectors = [dict(each.labels) for each in layout.shards]
    group = _existing(name) or _new(name, bundles, selectors, service.spec.experts.placement)
    await _wait_placed(service, group, shard.index, bundles)
    return Reservation(group, shard.index)


async def reserve_further(
    service: Service, layout: Layout, shard: ShardPlan, replica: int, in_turn: asyncio.Lock
) -> Reservation:
    """Reserves one more replica of a shard; an earlier controller's reservation is taken over, if it has a host.

    Args:
        in_turn: Held while a host is chosen: each looks where the others are.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    name, bundle = group_name(service.name, layout.version, shard.index, replica), bundle_of(service, shard)
    async with in_turn:
        group = _existing(name)
        if group is not None and not await PLACEMENTS.is_placed(group, 0):
            remove_placement_group(group)  # its host is gone, or was never found: other hosts may do now
            group = None
        if group is None:
            group = _new(name, [bundle], [_selector(service, layout, shard, bundle)], "pack")
            with suppress(TimeoutError):
                await asyncio.wait_for(_ready(group), PLACING_S)
    await _wait_placed(service, group, 0, [bundle])
    return Reservation(group, 0)


def _selector(service: Service, layout: Layout, shard: ShardPlan, bundle: Bundle) -> dict[str, str]:
    """Returns the labels of the hosts that a further replica of a shard may run on."""
    hosts = list(_hosts(service.name, layout.version))
    beside = {host for _, host in hosts}
    of_shard = {host for index, host in hosts if index == shard.index}
    with_room = _hosts_with_room(bundle, shard.labels)
    rule = host_rule(service.spec.experts.placement, beside, of_shard, with_room)
    return dict(shard.labels) if rule is None else {**shard.labels, HOST_LABEL: rule}


def host_rule(placement: str, beside: Set[str], of_shard: Set[str], with_room: Set[str]) -> str | None:
    """Returns the label selector's rule for the host of a further replica; None: any host. Pure.

    Args:
        placement: `experts.placement`.
        beside: The hosts of all expert actors of this service.
        of_shard: The hosts of this shard's other replicas.
        with_room: The hosts that have room for it now.
    """
    match placement:
        case "strict_spread":
            return _rule("!in", beside)
        case "strict_pack":
            return _rule("in", beside)
        case "spread":  # a wish: where no other host has room, a shard's replicas share one
            return _rule("!in", of_shard) if with_room - of_shard else None
        case _:
            return None


def release(name: str, reservation: Reservation | None) -> None:
    """Gives back what `reserve_further` reserved; whatever still runs in it ends.

    Args:
        name: Of its group.
        reservation: None: not known here; it is looked for by the name.
    """
    # Not looked for needlessly: Ray's table of groups keeps those that were removed, and grows.
    group = _existing(name) if reservation is None else reservation.group
    if group is not None:
        remove_placement_group(group)


def release_layout(service: str, layout: str) -> None:
    """Gives back everything of one layout; whatever still runs in it ends."""
    first = first_group_name(service, layout)
    for name, group_id, _ in list(_groups(first)):
        if name == first or name.startswith(f"{first}/"):
            remove_placement_group(PlacementGroup(group_id))


def release_all(service: str, spared: Set[str] = frozenset()) -> None:
    """Gives back everything of a service but the groups of the names `spared`; whatever still runs in it ends."""
    for name, group_id, _ in list(_groups(groups_prefix(service))):
        if name not in spared:
            remove_placement_group(PlacementGroup(group_id))


async def _wait_placed(service: Service, group: PlacementGroup, index: int, bundles: list[Bundle]) -> None:
    """Waits until a bundle of a group has a host.

    Raises:
        RuntimeError: Not within `limits.load_timeout_s`; says what was asked for.
    """
    limit_s = service.spec.limits.load_timeout_s
    deadline_s, pause_s = time.monotonic() + limit_s, FIRST_PAUSE_S
    while not await PLACEMENTS.is_placed(group, index):
        if time.monotonic() > deadline_s:
            raise RuntimeError(
                f"{len(bundles)} expert actor{'s' * (len(bundles) > 1)} with {_words(bundles[index])} each "
                f"({service.spec.experts.placement}) could not be placed within {limit_s:g} s "
                f"(limits.load_timeout_s); the cluster has {_words(ray.cluster_resources())}, of which "
                f"{_words(ray.available_resources())} are free"
            )
        # Not by asking for `ready` again and again: Ray keeps each such call until the group is placed.
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PLACING_S)


def num_reserved(service: str, layout: str, host: str) -> int:
    """Returns for how many replicas of a layout a host is reserved."""
    return sum(found == host for _, found in _hosts(service, layout))


async def is_placed(reservation: Reservation) -> bool:
    """Whether a reservation has (still) a host that lives."""
    return await PLACEMENTS.is_placed(reservation.group, reservation.bundle)


async def _ready(group: PlacementGroup) -> None:
    await group.ready()  # pyright: ignore[reportGeneralTypeIssues] - from Ray's control plane; no worker starts for it


def _placed_bundles(group: PlacementGroup) -> frozenset[int]:
    """Returns which bundles have a host that lives."""
    found: dict[str, Any] = placement_group_table(group)
    if found.get("state") not in ("CREATED", "RESCHEDULING"):
        return frozenset()
    living = _living_hosts()
    return frozenset(int(bundle) for bundle, host in found.get("bundles_to_node_id", {}).items() if host in living)


PLACEMENTS = Placements(_placed_bundles)


def _living_hosts() -> dict[str, dict[str, str]]:
    """Returns the hosts that live, with their labels."""
    return {str(node["NodeID"]): dict(node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]}


def _new(name: str, bundles: list[Bundle], selectors: list[dict[str, str]], strategy: str) -> PlacementGroup:
    return placement_group(
        [dict(bundle) for bundle in bundles],
        strategy=strategy.upper(),
        name=name,
        lifetime="detached",
        bundle_label_selector=selectors,
    )


def _existing(name: str) -> PlacementGroup | None:
    return next((PlacementGroup(group_id) for found, group_id, _ in _groups(name) if found == name), None)


def _groups(prefix: str) -> Iterator[tuple[str, PlacementGroupID, dict[str, Any]]]:
    """Yields the groups whose names start so. Ray's look-up by name sees one namespace: that of the driver's start."""
    table: dict[str, dict[str, Any]] = placement_group_table()  # pyright: ignore[reportUnknownVariableType]
    for group_id, group in table.items():
        if group["name"].startswith(prefix) and group["state"] != "REMOVED":
            yield group["name"], PlacementGroupID(bytes.fromhex(group_id)), group


def _hosts(service: str, layout: str) -> Iterator[tuple[int, str]]:
    """Yields the hosts reserved for a layout, each with the index of the shard that it is for."""
    first = first_group_name(service, layout)
    for name, _, group in _groups(first):
        for bundle, host in group.get("bundles_to_node_id", {}).items():
            index = int(bundle) if name == first else int(name.removeprefix(f"{first}/").partition("/")[0])
            if host:
                yield index, host


def _hosts_with_room(bundle: Bundle, labels: Mapping[str, str]) -> set[str]:
    """Returns the hosts that have these labels and so much free now; of label rules, plain values are understood."""
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return {
        host
        for host, found in _living_hosts().items()
        if labels.items() <= found.items()
        and all(free.get(host, {}).get(name, 0.0) >= amount for name, amount in bundle.items())
    }


def _words(amounts: Mapping[str, float]) -> str:
    """Resources as a service file names them: without what Ray keeps books of for itself."""
    kept = {name: amount for name, amount in amounts.items() if name in SHOWN or name.startswith("accelerator_type:")}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(kept.items())) or "nothing"


def _rule(word: str, hosts: Set[str]) -> str | None:
    return f"{word}({','.join(sorted(hosts))})" if hosts else None
