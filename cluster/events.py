"""The last things that happened to a service, for `manta status`. Pure; time is given."""

from collections import deque
from collections.abc import Iterable, Mapping

NUM_EVENTS = 200
NUM_LATEST = 50  # those that outlive the controller

Event = Mapping[str, object]


class Events:
    """The last NUM_EVENTS events, oldest first.

    Args:
        before: What an earlier controller of the service has kept of them.
    """

    def __init__(self, before: Iterable[Event] = ()) -> None:
        self._events: deque[Event] = deque(before, maxlen=NUM_EVENTS)
        self._changed = False

    def note(self, text: str, failed: bool, time_s: float) -> None:
        """Adds one; `time_s` in seconds since 1970."""
        self._events.append({"time": time_s, "text": text, "failed": failed})
        self._changed = True

    def take_changed(self) -> bool:
        """Returns whether there were any since the last call."""
        changed, self._changed = self._changed, False
        return changed

    def as_list(self) -> list[dict[str, object]]:
        """Returns them as plain data."""
        return [dict(event) for event in self._events]

    def latest(self) -> list[dict[str, object]]:
        """Returns the last NUM_LATEST of them."""
        return self.as_list()[-NUM_LATEST:]
