"""Which expert actors a service has, what each one holds and what it needs of its host. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.fingerprint import fingerprint
from cluster.resolve import Service
from cluster.spec import ShardPlan, shards
from experts.actor import ExpertSettings

# What an actor's `accelerator_type` asks Ray for, beside the GPU itself; the bundle must hold it.
ACCELERATOR_SHARE = 0.001

Bundle = dict[str, float]


@dataclass(frozen=True)
class Layout:
    """The shards of one version of a service.

    Args:
        version: Names everything about the actors but their number: layouts of one version have the same actors.
    """

    version: str
    shards: tuple[ShardPlan, ...]


def layout_of(service: Service) -> Layout:
    """Returns the layout that a service's file asks for.

    Raises:
        SpecError: `experts` does not fit the checkpoint's experts.
    """
    plans = shards(service.spec, service.config.num_experts, service.num_cpus)
    experts = service.spec.experts
    actors = [
        (expert_settings(service, shard), bundle_of(service, shard), sorted(shard.labels.items())) for shard in plans
    ]
    return Layout(fingerprint((actors, experts.placement, experts.pin_cores)), plans)


def expert_settings(service: Service, shard: ShardPlan) -> ExpertSettings:
    """Returns what the actors of one shard are started with."""
    return ExpertSettings(
        directory=service.directory,
        config=service.config,
        expert_ids=shard.expert_ids,
        slice_index=shard.slice_index,
        num_slices=shard.num_slices,
        dtype=service.dtype,
        device=shard.device,
        orphan_timeout_s=service.spec.limits.orphan_timeout_s,
        loopback=service.loopback,
        tls=service.tls,
    )


def cpus_of(service: Service, shard: ShardPlan) -> float:
    """Returns the CPUs that one replica sets aside."""
    return service.room.share if shard.num_cpus == "auto" else shard.num_cpus


def bundle_of(service: Service, shard: ShardPlan) -> Bundle:
    """Returns what one replica reserves of its host."""
    bundle: Bundle = {"CPU": cpus_of(service, shard)}
    if shard.num_gpus:
        bundle["GPU"] = shard.num_gpus
    if shard.accelerator_type is not None:
        bundle[f"accelerator_type:{shard.accelerator_type}"] = ACCELERATOR_SHARE
    return bundle


def core_for(used: Iterable[int | None], num_replicas: int, pin: bool | str, num_cores: int) -> int | None:
    """Returns the core that one replica is pinned to; None: any.

    Args:
        used: The cores of the other replicas on its host.
        num_replicas: How many its host has, or is to have, with this one.
        pin: `experts.pin_cores`; `auto` pins while there are cores for all.
        num_cores: The cores of the host.

    >>> core_for([0], 2, "auto", 2), core_for([0], 3, "auto", 2), core_for([0, 1], 3, True, 2)
    (1, None, 0)
    """
    if pin is False or (pin == "auto" and num_replicas > num_cores):
        return None
    load = Counter(used)
    return min(range(num_cores), key=load.__getitem__)
