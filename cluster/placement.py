"""Where a service's expert actors may run: one placement group with a bundle for each replica of each shard."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,  # pyright: ignore[reportUnknownVariableType]
    placement_group_table,  # pyright: ignore[reportUnknownVariableType]
    remove_placement_group,
)

from cluster.names import group_name
from cluster.resolve import EXPERT_CPU_SHARE, Service, fitting_cpus
from cluster.spec import ShardPlan, shards

# What an actor's `accelerator_type` asks Ray for, beside the GPU itself; the bundle must hold it.
ACCELERATOR_SHARE = 0.001

Bundle = dict[str, float]


@dataclass(frozen=True)
class ExpertGroup:
    """A placement group and what its bundles are for, in their order.

    Args:
        num_cpus: CPUs of one replica.
    """

    group: PlacementGroup
    replicas: tuple[tuple[ShardPlan, int], ...]
    num_cpus: float


async def place_experts(service: Service) -> ExpertGroup:
    """Reserves what the spec asks for; an earlier controller's reservation is taken over.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    spec = service.spec
    plan = shards(spec, service.config.num_experts, service.num_cpus)
    replicas = tuple((shard, replica) for shard in plan for replica in range(shard.replicas))
    num_cpus = _cpus_of_one(service, len(replicas))
    bundle = _bundle(service, num_cpus)
    group = _matching_group(service.name, [bundle] * len(replicas)) or _new_group(service, bundle, len(replicas))
    try:
        await asyncio.wait_for(group.ready(), spec.limits.load_timeout_s)  # pyright: ignore[reportArgumentType]
    except TimeoutError:
        raise RuntimeError(
            f"{len(replicas)} expert actors with {bundle} each ({spec.experts.placement}) could not be placed within "
            f"{spec.limits.load_timeout_s:g} s (limits.load_timeout_s); the cluster has {ray.cluster_resources()}, "
            f"of which {ray.available_resources()} are free"
        ) from None
    return ExpertGroup(group, replicas, num_cpus)


def _cpus_of_one(service: Service, num_replicas: int) -> float:
    given = service.spec.experts.num_cpus
    if given != "auto":
        return given
    return fitting_cpus(num_replicas, ray.cluster_resources().get("CPU", 1.0), EXPERT_CPU_SHARE)


def _bundle(service: Service, num_cpus: float) -> Bundle:
    experts = service.spec.experts
    bundle: Bundle = {"CPU": num_cpus}
    if experts.num_gpus:
        bundle["GPU"] = experts.num_gpus
    if experts.accelerator_type is not None:
        bundle[f"accelerator_type:{experts.accelerator_type}"] = ACCELERATOR_SHARE
    return bundle


def _new_group(service: Service, bundle: Bundle, num_bundles: int) -> PlacementGroup:
    experts = service.spec.experts
    return placement_group(
        [dict(bundle) for _ in range(num_bundles)],
        strategy=experts.placement.upper(),
        name=group_name(service.name),
        lifetime="detached",
        bundle_label_selector=[dict(experts.labels) for _ in range(num_bundles)],
    )


def _matching_group(service: str, bundles: list[Bundle]) -> PlacementGroup | None:
    """Returns what an earlier controller of this service has reserved; what is of no use any more is given back."""
    for group in _existing_groups(service):
        if [_rounded(bundle) for bundle in group.bundle_specs] == [_rounded(bundle) for bundle in bundles]:
            return group
        remove_placement_group(group)
    return None


def _rounded(bundle: Bundle) -> Bundle:
    """Ray keeps four decimals of an amount."""
    return {name: round(amount, 3) for name, amount in bundle.items()}


def _existing_groups(service: str) -> Iterator[PlacementGroup]:
    """Yields the service's groups. Ray's own look-up by name sees one namespace: that of whoever started the driver."""
    table: dict[str, dict[str, str]] = placement_group_table()  # pyright: ignore[reportUnknownVariableType]
    for group_id, group in table.items():
        if group["name"] == group_name(service) and group["state"] != "REMOVED":
            yield PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))


def release_group(service: str) -> None:
    """Gives back what `place_experts` reserved; whatever still runs in it ends."""
    for group in _existing_groups(service):
        remove_placement_group(group)
