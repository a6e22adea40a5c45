"""Where a service's expert actors may run.

The first replica of every shard is reserved together, in one placement group with the service file's strategy. Each
further replica has a group of its own, so that it can come and go alone; label selectors keep it away from the others
(or beside them), as the strategy says.
"""

import asyncio
from collections.abc import Iterator, Set
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
from cluster.resolve import Service
from cluster.spec import ShardPlan

HOST_LABEL = "ray.io/node-id"  # every Ray node has it
PLACED = "CREATED"  # Ray's word for a placement group that holds what it asked for


@dataclass(frozen=True)
class Reservation:
    """A bundle of a placement group."""

    group: PlacementGroup
    bundle: int


async def reserve_first(service: Service, layout: Layout) -> PlacementGroup:
    """Reserves the first replica of every shard, in their order; an earlier controller's reservation is taken over.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    name = first_group_name(service.name, layout.version)
    bundles = [bundle_of(service, shard) for shard in layout.shards]
    selectors = [dict(shard.labels) for shard in layout.shards]
    group = _existing(name) or _new(name, bundles, selectors, service.spec.experts.placement)
    return await _placed(service, group, bundles)


async def reserve_further(service: Service, layout: Layout, shard: ShardPlan, replica: int) -> Reservation:
    """Reserves one more replica of a shard; an earlier controller's reservation is taken over.

    One that holds nothing (any more: its host was lost) is made anew, by where the others are now: its label selector
    says where they were.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    name = group_name(service.name, layout.version, shard.index, replica)
    bundle = bundle_of(service, shard)
    group = _existing(name)
    if group is not None and not _is_placed(name):
        remove_placement_group(group)
        group = None
    if group is None:
        placement = service.spec.experts.placement
        beside = set(_hosts(service.name, layout.version, None))
        of_shard = set(_hosts(service.name, layout.version, shard.index))
        rule = host_rule(placement, beside, of_shard, _hosts_with_room(bundle))
        selector = dict(shard.labels) if rule is None else {**shard.labels, HOST_LABEL: rule}
        group = _new(name, [bundle], [selector], "pack")
    return Reservation(await _placed(service, group, [bundle]), 0)


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


def release(service: str, layout: str, shard: int, replica: int) -> None:
    """Gives back what `reserve_further` reserved; whatever still runs in it ends."""
    group = _existing(group_name(service, layout, shard, replica))
    if group is not None:
        remove_placement_group(group)


def release_layout(service: str, layout: str) -> None:
    """Gives back everything of one layout; whatever still runs in it ends."""
    first = first_group_name(service, layout)
    for name, group_id, _ in list(_groups(first)):
        if name == first or name.startswith(f"{first}/"):
            remove_placement_group(PlacementGroup(group_id))


def release_all(service: str) -> None:
    """Gives back everything of a service; whatever still runs in it ends."""
    for _, group_id, _ in list(_groups(groups_prefix(service))):
        remove_placement_group(PlacementGroup(group_id))


def layouts_reserved(service: str) -> set[str]:
    """Returns the layout versions that hold a reservation."""
    prefix = groups_prefix(service)
    return {name.removeprefix(prefix).partition("/")[0] for name, _, _ in _groups(prefix)}


async def _placed(service: Service, group: PlacementGroup, bundles: list[Bundle]) -> PlacementGroup:
    try:
        # Ray's answer to `ready` comes from its own control plane; no worker is started for it.
        await asyncio.wait_for(group.ready(), service.spec.limits.load_timeout_s)  # pyright: ignore[reportArgumentType]
    except TimeoutError:
        raise RuntimeError(
            f"{len(bundles)} expert actor{'s' * (len(bundles) > 1)} with {bundles[0]} each "
            f"({service.spec.experts.placement}) could not be placed within "
            f"{service.spec.limits.load_timeout_s:g} s (limits.load_timeout_s); the cluster has "
            f"{ray.cluster_resources()}, of which {ray.available_resources()} are free"
        ) from None
    return group


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


def _is_placed(name: str) -> bool:
    return any(found == name and group["state"] == PLACED for found, _, group in _groups(name))


def _groups(prefix: str) -> Iterator[tuple[str, PlacementGroupID, dict[str, Any]]]:
    """Yields the groups whose names start so. Ray's look-up by name sees one namespace: that of the driver's start."""
    table: dict[str, dict[str, Any]] = placement_group_table()  # pyright: ignore[reportUnknownVariableType]
    for group_id, group in table.items():
        if group["name"].startswith(prefix) and group["state"] != "REMOVED":
            yield group["name"], PlacementGroupID(bytes.fromhex(group_id)), group


def _hosts(service: str, layout: str, shard: int | None) -> Iterator[str]:
    """Yields the hosts reserved for one shard of a layout; None: for all of them."""
    first = first_group_name(service, layout)
    for name, _, group in _groups(first):
        for bundle, host in group.get("bundles_to_node_id", {}).items():
            index = int(bundle) if name == first else int(name.removeprefix(f"{first}/").partition("/")[0])
            if host and shard in (None, index):
                yield host


def _hosts_with_room(bundle: Bundle) -> set[str]:
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return {
        host
        for host, amounts in free.items()
        if all(amounts.get(name, 0.0) >= amount for name, amount in bundle.items())
    }


def _rule(word: str, hosts: Set[str]) -> str | None:
    return f"{word}({','.join(sorted(hosts))})" if hosts else None
