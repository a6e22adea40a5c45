"""How many CPUs a service finds, and what it makes of them where its file says `auto`. Pure, and makes no Ray call."""

from dataclasses import dataclass

# Ray only counts CPUs, it does not keep parts apart; a part's share must not change when the number of parts does.
NUM_PARTS_THAT_FIT = 40
# Left where each expert actor takes a whole CPU: to an attention node, its replacement and the small parts.
FOR_OTHERS = 3
SMALLEST = FOR_OTHERS + 1  # the CPUs of a cluster on which parts can take whole ones


@dataclass(frozen=True)
class Room:
    """The CPUs of the hosts that a service may run on.

    What follows from them is the same however many replicas a service gets later.

    Args:
        hosts: The CPUs of each host, as Ray hands them out.
        own: Whether Manta has started Ray itself, for its services alone.
        replicas: Of each shard, when the service starts; None: not known yet.
        num_cpus: What each of them sets aside.
    """

    hosts: tuple[float, ...]
    own: bool
    replicas: int | None = None
    num_cpus: float = 1.0

    @property
    def share(self) -> float:
        """CPUs that one part sets aside: 1; less on a Ray of Manta's own, or where so few would not do.

        >>> Room((8.0,), own=False).share, Room((8.0,), own=True).share, Room((2.0,), own=False).share
        (1.0, 0.2, 0.05)
        """
        if not self._num_cpus or (not self.own and self._num_cpus >= SMALLEST):
            return 1.0  # without any CPU, hosts are yet to come
        return min(1.0, round(self._num_cpus / NUM_PARTS_THAT_FIT, 3))

    def for_experts(self, placement: str) -> int:
        """Returns for how many shards of experts there is room beside the other parts; at least 1.

        Args:
            placement: `experts.placement`.

        >>> Room((8.0,), own=True).for_experts("spread"), Room((4.0, 4.0), own=False).for_experts("spread")
        (8, 5)
        >>> Room((4.0, 4.0), own=False, replicas=2).for_experts("spread")
        2
        """
        if self.own or self._num_cpus < SMALLEST:
            return max(1, self._num_cpus)
        replicas = max(1, self.replicas or 1)
        per_shard = max(1.0, replicas * self.num_cpus)
        room = int((self._num_cpus - FOR_OTHERS) // per_shard)
        if placement == "strict_pack":
            room = min(room, int((max(self.hosts) - 1) // per_shard))
        if placement == "strict_spread":
            room = min(room, sum(cpus >= max(1.0, self.num_cpus) for cpus in self.hosts) // replicas)
        return max(1, room)

    @property
    def _num_cpus(self) -> int:
        return sum(int(cpus) for cpus in self.hosts)
