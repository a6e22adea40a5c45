"""From an expert replica's counters to its load. Pure: the counters carry their own time."""

from collections.abc import Mapping
from typing import Any

from cluster.scaling import Load


class ExpertMeter:
    """Follows one replica: the load between one reading and the next."""

    def __init__(self) -> None:
        self._uptime_s = self._busy_s = 0.0
        self._rows = 0
        self._load: Load | None = None

    def read(self, figures: Mapping[str, Any]) -> Load | None:
        """Returns the load since the last reading; None if there is none to compare with.

        What has been read already says the same again: whoever reads more often than the figures come must not take
        their age for ignorance.

        Args:
            figures: What the expert actor's `snapshot` gives. While it loads, it has no counters yet.
        """
        if "uptime_s" not in figures:
            return None
        if float(figures["uptime_s"]) != self._uptime_s:
            self._load = self._measure(figures)
        return self._load

    def _measure(self, figures: Mapping[str, Any]) -> Load | None:
        uptime_s, busy_s, rows = float(figures["uptime_s"]), float(figures["busy_s"]), int(figures["rows_total"])
        span_s, worked_s, done = uptime_s - self._uptime_s, busy_s - self._busy_s, rows - self._rows
        known = self._uptime_s > 0 and span_s > 0 and worked_s >= 0 and done >= 0  # else another process answers now
        self._uptime_s, self._busy_s, self._rows = uptime_s, busy_s, rows
        if not known:
            return None
        queued_s = int(figures["queue"]) * worked_s / done if done else 0.0
        return Load(min(1.0, worked_s / span_s), queued_s / span_s)
