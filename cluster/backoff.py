"""How long to pause before something that failed is tried again. Pure; time is given."""

FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 30.0
# What worked for so long is tried again at once; what fails sooner is given more and more time.
STABLE_S = 30.0


class Backoff:
    """The pauses between tries: none after a success that lasted, otherwise each twice the one before.

    >>> backoff = Backoff()
    >>> [backoff.pause_s(worked_s) for worked_s in (0.0, 1.0, 3600.0, 2.0)]
    [0.5, 1.0, 0.0, 0.5]
    """

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def pause_s(self, worked_s: float) -> float:
        """Returns the pause after a try that worked for `worked_s` seconds before it failed (0: not at all)."""
        if worked_s >= STABLE_S:
            self._next_s = FIRST_PAUSE_S
            return 0.0
        pause_s, self._next_s = self._next_s, min(LAST_PAUSE_S, self._next_s * 2)
        return pause_s
