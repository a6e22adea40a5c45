"""How busy a process's data plane is, for status and autoscaling."""

import threading
import time

MIN_SPAN_S = 0.9  # the share of less time says little; whoever asks once a second gets a new one each time


class BusyClock:
    """Measures one thread's processor time. It is read from outside, so it costs the thread nothing.

    Neither waiting for messages counts, nor waiting for a core that others use: more replicas would not help there.
    On a GPU the thread is busy while it waits for the device.
    """

    def __init__(self) -> None:
        self._clock: int | None = None
        self._busy_s = 0.0
        self._last_s, self._last_busy_s = time.monotonic(), 0.0
        self._utilization = 0.0
        self._lock = threading.Lock()

    def follow_thread(self) -> None:
        """Measures the calling thread from its start on; to be called once."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    @property
    def busy_s(self) -> float:
        """Processor time so far, in seconds; callable from any thread."""
        if self._clock is not None:
            try:
                self._busy_s = max(self._busy_s, time.clock_gettime(self._clock))
            except OSError:
                self._clock = None  # the thread has ended
        return self._busy_s

    def utilization(self) -> float:
        """Returns the share of the time that the thread computed, 0 to 1; callable from any thread.

        Of the time since it was last determined, which it is when somebody asks, but not more than once a MIN_SPAN_S.
        """
        with self._lock:
            now_s, busy_s = time.monotonic(), self.busy_s
            span_s = now_s - self._last_s
            if span_s >= MIN_SPAN_S:
                self._utilization = round(min(1.0, (busy_s - self._last_busy_s) / span_s), 3)
                self._last_s, self._last_busy_s = now_s, busy_s
            return self._utilization
