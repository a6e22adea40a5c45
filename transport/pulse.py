"""Whether the thread that owns a data plane lives, asked from another thread of its process."""

import threading

from transport.busy import BusyClock
from transport.loop import Loop

WAIT_S = 0.5
# A thread that computes cannot turn its loop meanwhile, and the largest batches of slow cores take longer than a hung
# process may be silent. Even one of few turns at a share of a crowded core gets more than this of it.
MIN_SHARE = 0.02
# Processor time without a turn after which a thread is taken to compute in vain. The longest batch that is foreseen,
# 4096 rows of an expert of Mixtral 8x7B on one slow core (40 GFLOP/s), takes 36 s.
MAX_COMPUTING_S = 120.0


class Pulse:
    """Tells whether a thread turns its loop, or at least computes. The thread itself is woken once for each question.

    Args:
        loop: The thread's loop.
        clock: Follows the thread.
    """

    def __init__(self, loop: Loop, clock: BusyClock) -> None:
        self._loop = loop
        self._clock = clock
        self._turned_at_s = 0.0  # the thread's processor time when it last answered

    def beats(self) -> bool:
        """Returns whether the thread lives; waits WAIT_S if it does not answer. To be asked about once a second."""
        turned = threading.Event()
        # What is posted to a thread that hangs is never taken: one a second, until the process is ended for it.
        self._loop.post(lambda: self._turn(turned))
        return turned.wait(WAIT_S) or self._computes()

    def _turn(self, turned: threading.Event) -> None:
        self._turned_at_s = self._clock.busy_s
        turned.set()

    def _computes(self) -> bool:
        in_vain = self._clock.busy_s - self._turned_at_s > MAX_COMPUTING_S
        return self._clock.utilization() >= MIN_SHARE and not in_vain
