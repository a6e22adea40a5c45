"""Whether the thread that owns a data plane lives, asked from another thread of its process."""

import threading

from transport.busy import BusyClock
from transport.loop import Loop

WAIT_S = 0.5
# A thread that computes cannot turn its loop meanwhile, and the largest batches of slow cores take longer than a hung
# process may be silent. Even one of few turns at a share of a crowded core gets more than this of it.
MIN_SHARE = 0.02
# Processor time, without a turn or a word of progress, after which a thread is taken to compute in vain. The longest
# product of an expert takes 5 s of a slow core (`experts/ffn.py`), and a node's step a turn for each layer.
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
        self._turned_at_s = 0.0  # the thread's processor time when it last answered, or said that it gets on

    def beats(self) -> bool:
        """Returns whether the thread lives; waits WAIT_S if it does not answer. To be asked about once a second."""
        turned = threading.Event()
        # What is posted to a thread that hangs is never taken: one a second, until the process is ended for it.
        self._loop.post(lambda: self._turn(turned))
        return turned.wait(WAIT_S) or self._computes()

    def note_progress(self) -> None:
        """The thread itself says that what it computes gets on."""
        self._turned_at_s = self._clock.busy_s

    def _turn(self, turned: threading.Event) -> None:
        self.note_progress()
        turned.set()

    def _computes(self) -> bool:
        in_vain = self._clock.busy_s - self._turned_at_s > MAX_COMPUTING_S
        return self._clock.utilization() >= MIN_SHARE and not in_vain
