"""The queue of a node: who is admitted next. Pure."""

from bisect import insort
from collections.abc import Iterator
from itertools import count

from attention.sequence import Sequence


class WaitingQueue:
    """Sequences that wait: those of the lowest `priority` value first, of one value in the order in which they came.

    Nothing else moves a sequence ahead: while sequences of a lower value keep coming, one of a higher value waits.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Sequence]] = []  # sorted by priority, then by place
        self._behind = count(1)
        self._ahead = count(-1, -1)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, _, sequence in self._entries)

    @property
    def first(self) -> Sequence:
        """The one that is next. Raises IndexError if none waits."""
        return self._entries[0][2]

    def pop_first(self) -> Sequence:
        """Takes the one that is next out."""
        return self._entries.pop(0)[2]

    def add(self, sequence: Sequence) -> None:
        """Adds one behind all others of its priority."""
        insort(self._entries, (sequence.priority, next(self._behind), sequence))

    def put_back(self, sequence: Sequence) -> None:
        """Adds one before all others of its priority: it has been admitted before."""
        insort(self._entries, (sequence.priority, next(self._ahead), sequence))

    def remove(self, sequence: Sequence) -> None:
        """Takes one out, wherever it is. Raises StopIteration if it does not wait."""
        del self._entries[next(place for place, entry in enumerate(self._entries) if entry[2] is sequence)]
