"""The last things that happened to a service, for `manta status`. Pure; time is given."""

from collections import deque

NUM_EVENTS = 200


class Events:
    """The last NUM_EVENTS events, oldest first."""

    def __init__(self) -> None:
        self._events: deque[dict[str, object]] = deque(maxlen=NUM_EVENTS)

    def note(self, text: str, failed: bool, time_s: float) -> None:
        """Adds one; `time_s` in seconds since 1970."""
        self._events.append({"time": time_s, "text": text, "failed": failed})

    def as_list(self) -> list[dict[str, object]]:
        """Returns them as plain data."""
        return [dict(event) for event in self._events]
