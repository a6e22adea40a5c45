"""The routing table: which process serves what, as the controller publishes it. Plain data."""

import logging
from dataclasses import dataclass

from transport.address import Address

logger = logging.getLogger(__name__)


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
    """Everything that the data plane needs to know about who is where.

    Args:
        version: Counts one controller's tables.
        epoch: Counts a service's controllers: every table of a later one is newer than all of an earlier one.
    """

    version: int = 0
    shards: tuple[ShardEntry, ...] = ()
    routers: tuple[Address, ...] = ()
    nodes: tuple[Address, ...] = ()
    epoch: int = 0

    @property
    def position(self) -> tuple[int, int]:
        """Its place among all tables of the service: (epoch, version)."""
        return self.epoch, self.version


class Newest:
    """Lets each table through that is newer than all before: whoever receives tables asks it first.

    A late answer, of a controller that was replaced meanwhile or out of turn, thus never undoes a newer table.
    """

    def __init__(self) -> None:
        self._position: tuple[int, int] | None = None

    def is_newer(self, table: RoutingTable) -> bool:
        """Returns whether `table` is to be used; from then on it is what others are compared with."""
        if self._position is not None and table.position <= self._position:
            logger.info("table %s is older than %s, or the same: ignored", table.position, self._position)
            return False
        self._position = table.position
        return True
