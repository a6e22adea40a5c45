"""Requests that wait for a service, taken in turn between those who sent them. Pure."""

from collections import deque
from collections.abc import Iterable

from transport.base import Request

# What a service gets at once. It merges rows, so this bounds the memory of one computation and how long the loop does
# not turn meanwhile; matrix products are long at full speed by then.
MAX_ROWS = 4096
MAX_BYTES = 64 << 20


class Turns:
    """Requests by sender; each `take` goes around the senders until the rows or the bytes are enough.

    Its size is bounded by whoever adds: a sender that has something waiting is not read from (`RequestServer`).
    """

    def __init__(self, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._queues: dict[object, deque[Request]] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def senders(self) -> Iterable[object]:
        """Those who have something waiting."""
        return self._queues.keys()

    def add(self, sender: object, request: Request) -> None:
        """Puts a request behind the others of its sender."""
        self._queues.setdefault(sender, deque()).append(request)

    def oldest(self, sender: object) -> Request | None:
        """Returns what a sender has waiting for longest."""
        queue = self._queues.get(sender)
        return queue[0] if queue else None

    def drop(self, sender: object) -> None:
        """Forgets whatever a sender has waiting."""
        self._queues.pop(sender, None)

    def take(self) -> list[Request]:
        """Returns what is next: at least one request, if there is one, and otherwise no more than the limits."""
        taken: list[Request] = []
        num_rows = num_bytes = 0
        while self._queues:
            sender, queue = next(iter(self._queues.items()))
            rows_TD = queue[0].rows_TD
            num_rows += rows_TD.shape[0]
            num_bytes += rows_TD.nbytes
            if taken and (num_rows > self._max_rows or num_bytes > self._max_bytes):
                break
            taken.append(queue.popleft())
            del self._queues[sender]
            if queue:
                self._queues[sender] = queue  # behind the others
        return taken
