"""A clock's descriptor (timerfd), so that a loop need not look at the time in each of its turns."""

import ctypes
import math
import os

# As in <sys/timerfd.h>; Python has names for them from 3.13 on.
_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_Times = ctypes.c_long * 4  # struct itimerspec: interval and first time, each in seconds and nanoseconds
_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Is readable from a given time on. Nothing is asked of it meanwhile.

    Raises:
        OSError: The process has no descriptor left.
    """

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS))
        self.rang = False
        """Whether the time has come, since the owner last set this to False."""

    def fileno(self) -> int:
        return self._descriptor

    def set(self, due_s: float | None) -> None:
        """Replaces the time (of `time.monotonic`); None: never."""
        due_ns = 0 if due_s is None else max(1, math.ceil(due_s * 1e9))  # 0 means never
        _checked(_libc.timerfd_settime(self._descriptor, _ABSOLUTE, _Times(0, 0, *divmod(due_ns, 10**9)), None))

    def on_ready(self, events: int) -> None:
        del events
        self.rang = True  # it stays readable until it is set anew

    def close(self) -> None:
        os.close(self._descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
