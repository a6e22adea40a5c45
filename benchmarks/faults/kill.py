"""The disturbance that ends (or stops) one process of a service."""

import asyncio
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from benchmarks.faults.census import Process, counts, is_replaced, is_whole, serving
from benchmarks.faults.disturbances import DisturbanceError

POLL_S = 0.2
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Observed:
    """A running service as a disturbance sees it.

    Args:
        status: Asks its controller; blocks, and raises RuntimeError (or Ray's errors) while that does not answer.
        whole: How many processes of each kind serve while nothing is amiss.
        host: The Ray node of this host: only its processes can be sent signals.
        recovery_timeout_s: How long it may take to be whole again.
        hang_timeout_s: How long a stopped process is left alone before it is killed.
    """

    status: Callable[[], Mapping[str, Any]]
    whole: Counter[str]
    host: str
    recovery_timeout_s: float
    hang_timeout_s: float

    async def serving(self) -> list[Process]:
        """The processes that serve; none while the controller does not answer."""
        with suppress(RuntimeError, RayError):
            return serving(await asyncio.to_thread(self.status))
        return []


class Victim:
    """A process of this host, held by a descriptor: no later process that gets its number is ever meant."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; returns False if the process has ended."""
        if self.ended:
            return False
        signal.pidfd_send_signal(self._descriptor, number)  # to a process that ends just now it does nothing
        return True

    @property
    def ended(self) -> bool:
        """Whether it has ended (a zombie has)."""
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._descriptor)


class Kill:
    """Sends a signal to one process of a kind, chosen by chance, and waits for its replacement.

    A process that is stopped rather than killed lies there until the service ends it; if nobody has after
    `hang_timeout_s`, or the wait ends for another reason, it is killed here.
    """

    def __init__(self, kind: str, how: str, observed: Observed, rng: random.Random) -> None:
        self.name = kind
        self.note = ""
        self._signal = SIGNALS[how]
        self._observed = observed
        self._rng = rng
        self._victim: Victim | None = None

    async def do(self) -> float:
        """Chooses a process and sends the signal; see `Disturbance`."""
        here = [one for one in await self._observed.serving() if one.host == self._observed.host]
        pids = sorted(one.pid for one in here if one.kind == self.name)
        if not pids:
            raise DisturbanceError(f"no {self.name} serves on this host, or the controller does not answer")
        pid = self._rng.choice(pids)
        self.note = f"pid {pid}, {self._signal.name}"
        try:
            self._victim = Victim(pid)
            self._victim.send(self._signal)
        except (ProcessLookupError, PermissionError) as error:
            raise DisturbanceError(f"{self.name} {pid} cannot be sent {self._signal.name}: {error.strerror}") from error
        return time.perf_counter()

    async def wait_until_over(self) -> float:
        """Returns when as many processes served as before; see `Disturbance`."""
        assert self._victim is not None, "`do` comes first"
        hangs = asyncio.get_running_loop().call_later(self._observed.hang_timeout_s, self._end_hung, self._victim)
        try:
            return await self._wait(self._victim)
        finally:
            hangs.cancel()
            if self._victim.send(signal.SIGKILL):
                self.note += "; was still there at the end, and was killed"
            self._victim.close()

    def _end_hung(self, victim: Victim) -> None:
        if victim.send(signal.SIGKILL):
            self.note += f"; nobody ended it in {self._observed.hang_timeout_s:g} s, so it was killed"

    async def _wait(self, victim: Victim) -> float:
        observed = self._observed
        hang_s = observed.hang_timeout_s if self._signal == signal.SIGSTOP else 0.0
        deadline_s = time.perf_counter() + hang_s + observed.recovery_timeout_s
        replaced_s: float | None = None
        while True:
            now = await observed.serving()
            if replaced_s is None and is_replaced(now, victim.pid, observed.whole):
                replaced_s = time.perf_counter()
            if replaced_s is not None and is_whole(now, victim.pid, observed.whole):
                return replaced_s
            if time.perf_counter() > deadline_s:
                raise DisturbanceError(f"not whole again in time: {_missing(now, victim.pid, observed.whole)}")
            await asyncio.sleep(POLL_S)


def _missing(now: list[Process], victim: int, whole: Counter[str]) -> str:
    found = counts(process for process in now if process.pid != victim)
    words = [f"{found[kind]} of {number} serve as {kind}" for kind, number in whole.items() if found[kind] != number]
    listed = [f"{victim} is still listed"] if any(process.pid == victim for process in now) else []
    return ", ".join(words + listed)
