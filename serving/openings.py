"""Which sequences of one request are submitted, and which wait for others to end. Pure: knows no task and no time."""

from heapq import heappop, heappush

# For each node. As it comes, one takes 320 (64 run, 256 wait): a request of hundreds of sequences leaves some of that.
MAX_OPEN = 128


class Openings:
    """Opens sequences in their order, so many at a time; fewer where they are refused, more again as others end.

    Args:
        num: The request's sequences, numbered from 0.
        max_open: The most that are submitted at a time; at least 1.
    """

    def __init__(self, num: int, max_open: int = MAX_OPEN) -> None:
        self._waiting = list(range(num))  # a heap: the first in order goes first
        self._open: set[int] = set()
        self._limit = self._max_open = max_open  # the limit: what nodes have taken so far

    def open(self) -> list[int]:
        """Returns the sequences to submit now; they are open from here on."""
        opened: list[int] = []
        while self._waiting and len(self._open) < self._limit:
            opened.append(heappop(self._waiting))
            self._open.add(opened[-1])
        return opened

    def ended(self, index: int) -> None:
        """An open sequence has ended: its place is free, and one more is tried. One that is not open is ignored."""
        if index in self._open:
            self._open.remove(index)
            self._limit = min(self._limit + 1, self._max_open)

    def refused(self, index: int) -> bool:
        """An open sequence found every queue full, and waits again. False: no other is open that it could wait for."""
        self._open.remove(index)
        heappush(self._waiting, index)
        self._limit = max(1, len(self._open))
        return bool(self._open)
