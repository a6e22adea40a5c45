"""How many peers a piece of work may cost: rows at the replicas of a shard, a sequence at the attention nodes."""

from typing import NamedTuple

# What so many peers had, one after the other, when they died is taken for the cause.
MAX_DEATHS = 4
# A peer that the routing table drops has most often been retired, but may have hung. Nobody retires so many in the
# time of one call, or before one token.
MAX_TRIES = 16


class Tries(NamedTuple):
    """What has become of the peers that had a piece of work and gave no answer.

    Args:
        num: How many there were.
        deaths: How many of them went away by themselves.
    """

    num: int = 0
    deaths: int = 0

    def another(self, died: bool) -> "Tries":
        """Returns the count with one more, which `died` with the work, or went away for another reason."""
        return Tries(self.num + 1, self.deaths + died)

    @property
    def too_many(self) -> bool:
        return self.deaths >= MAX_DEATHS or self.num >= MAX_TRIES


NO_TRIES = Tries()
