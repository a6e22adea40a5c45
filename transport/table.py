"""The routing table: which process serves what, as the controller publishes it.

Plain data, pickled only by Ray's control plane.
"""

from dataclasses import dataclass

from transport.address import Address


@dataclass(frozen=True, order=True)
class ShardKey:
    """A shard's identity: which experts, and which slice of their FFN columns, out of how many, in which layout."""

    expert_ids: tuple[int, ...]
    slice_index: int
    num_slices: int
    layout: str = ""

    def __str__(self) -> str:
        first, last = self.expert_ids[0], self.expert_ids[-1]
        experts = f"expert {first}" if first == last else f"experts {first}-{last}"
        return f"{experts}, slice {self.slice_index}"


@dataclass(frozen=True)
class ShardEntry:
    """The live replicas of one shard: some experts, or one slice of their FFN columns.

    Args:
        expert_ids: A contiguous, ascending range of experts.
        slice_index: Which slice of the FFN columns; the outputs of all `num_slices` slices are summed.
        replicas: Where its replicas listen; empty while the only one is being replaced.
        layout: Names the set of actors that it belongs to: another set takes over as a whole, once it is connected.
    """

    expert_ids: tuple[int, ...]
    slice_index: int
    num_slices: int
    replicas: tuple[Address, ...] = ()
    layout: str = ""

    @property
    def key(self) -> ShardKey:
        """What stays the same while replicas come and go."""
        return ShardKey(self.expert_ids, self.slice_index, self.num_slices, self.layout)


@dataclass(frozen=True)
class RoutingTable:
    """Everything that the data plane needs to know about who is where. A higher `version` replaces a lower one."""

    version: int = 0
    shards: tuple[ShardEntry, ...] = ()
    routers: tuple[Address, ...] = ()
    nodes: tuple[Address, ...] = ()
