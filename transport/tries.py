"""How many peers a piece of work may cost: rows at the replicas of a shard, a sequence at the attention nodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

# What so many peers had, one after the other, when they died is taken for the cause.
MAX_DEATHS = 4
# A peer that the routing table drops has most often been retired, but may have hung. Nobody retires so many in the
# time of one call, or before one token.
MAX_TRIES = 16


class Tries(NamedTuple):
    """What has become of the peers that had a piece of work and gave no answer.

    Args:
        num: How many tries there were.
        dead: The peers that went away by themselves, and have not come back. One that did lives: it was its link that
            failed, for a process that is replaced has another address.
    """

    num: int = 0
    dead: tuple[object, ...] = ()

    def another(self, dead: object | None, lives: Callable[[Any], bool]) -> "Tries":
        """Returns the count with one more.

        Args:
            dead: The peer, if it went away by itself; None: for another reason.
            lives: Whether a peer that was lost earlier is there again.
        """
        others = tuple(peer for peer in self.dead if peer is not dead and not lives(peer))
        return Tries(self.num + 1, others if dead is None else (*others, dead))

    @property
    def deaths(self) -> int:
        """How many peers died, as far as is known."""
        return len(self.dead)

    @property
    def too_many(self) -> bool:
        return self.deaths >= MAX_DEATHS or self.num >= MAX_TRIES


NO_TRIES = Tries()
