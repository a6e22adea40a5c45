"""Makes the routing table from what the controller knows. Pure."""

from collections.abc import Iterable

from cluster.spec import ShardPlan
from transport.address import Address
from transport.table import RoutingTable, ShardEntry


def routing_table(
    position: tuple[int, int],
    layout: str,
    replicas: Iterable[tuple[ShardPlan, Address | None]],
    routers: tuple[Address, ...],
    nodes: tuple[Address, ...],
) -> RoutingTable:
    """Returns the table.

    Args:
        position: Its epoch and version.
        layout: The version of the layout that the shards belong to.
        replicas: Every replica of every shard, and where it listens (None: it does not serve at present).
    """
    shards: dict[int, ShardEntry] = {}
    for shard, address in replicas:
        before = shards.get(shard.index)
        serving = before.replicas if before is not None else ()
        if address is not None:
            serving += (address,)
        shards[shard.index] = ShardEntry(shard.expert_ids, shard.slice_index, shard.num_slices, serving, layout)
    epoch, version = position
    return RoutingTable(version, tuple(shards.values()), routers, nodes, epoch)
