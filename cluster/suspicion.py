"""Whether a controller that does not answer one member hangs for all, or for that member alone. Time is given."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

MAX_UNANSWERED = 2  # announcements in a row
# After a member has had the controller ended, it does not do so again for so long: twice as long each time.
FIRST_PAUSE_S = 30.0
LAST_PAUSE_S = 600.0
CALM_S = 600.0  # answered for so long, a member begins with the first pause again


class Suspicion:
    """One member's.

    The witness is the controller's beat, which comes by another way than the calls that fail: out of Ray's store, where
    the controller writes as long as it hears any member. While the beat changes, the controller lives, and what fails
    is this member's way to it.

    Args:
        read_beat: Returns the beat as it is now; empty: there is none.
    """

    def __init__(self, read_beat: Callable[[], str]) -> None:
        self._read_beat = read_beat
        self._beat = ""
        self._num = 0
        self._pause_s = FIRST_PAUSE_S
        self._ended_s = float("-inf")

    def clear(self) -> None:
        """The controller has answered, or is known to be gone."""
        self._num = 0

    def unanswered(self, now_s: float) -> bool:
        """An announcement was not answered in time. Returns whether the controller hangs, and is to be ended."""
        beat = self._read()
        if self._num == 0 or beat != self._beat:
            if self._num:
                logger.warning("the controller hears others, and does not answer this process: it is left alone")
            self._beat, self._num = beat, 1
            return False
        self._num += 1
        if self._num < MAX_UNANSWERED or not beat or now_s < self._ended_s + self._pause_s:
            return False
        calm = now_s - self._ended_s > CALM_S + self._pause_s
        self._pause_s = FIRST_PAUSE_S if calm else min(LAST_PAUSE_S, 2 * self._pause_s)
        self._ended_s, self._num = now_s, 0
        return True

    def _read(self) -> str:
        try:
            return self._read_beat()
        except Exception as error:  # without a witness nobody is ended
            logger.warning("the controller's beat cannot be read: %s", error)
            return ""
