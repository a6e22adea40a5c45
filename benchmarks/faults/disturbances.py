"""What is done to a service under load, one thing after the other."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_PAUSE_S = 3.0


class DisturbanceError(Exception):
    """A disturbance could not be made, or the service did not recover from it in time; the message says which."""


class Disturbance(Protocol):
    """Something that is done to a running service, once. Times are those of time.perf_counter."""

    @property
    def name(self) -> str:
        """Its kind, by which the report groups."""
        ...

    @property
    def note(self) -> str:
        """What was done, in words, and what else is to be known of it."""
        ...

    async def do(self) -> float:
        """Does it; returns when it was done.

        Raises:
            DisturbanceError: It cannot be done.
        """
        ...

    async def wait_until_over(self) -> float:
        """Returns when the service had recovered; not before the next disturbance may follow.

        Raises:
            DisturbanceError: It did not recover in time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Happening:
    """One disturbance that was done: from when to when, and why the service did not recover (None: it did)."""

    kind: str
    note: str
    began_s: float
    over_s: float | None
    failure: str | None = None

    @property
    def took_s(self) -> float | None:
        """Seconds until the service had recovered; None where it did not."""
        return None if self.over_s is None else self.over_s - self.began_s


async def disturb(
    disturbances: Sequence[Disturbance],
    rng: random.Random,
    on_happening: Callable[[Happening], None],
    max_pause_s: float = MAX_PAUSE_S,
) -> list[Happening]:
    """Does one after the other, each at a random moment after the service has recovered from the one before.

    Ends early after one that could not be done, or from which the service did not recover.
    """
    happenings: list[Happening] = []
    for disturbance in disturbances:
        await asyncio.sleep(rng.uniform(0.0, max_pause_s))
        happening = await once(disturbance)
        happenings.append(happening)
        on_happening(happening)
        if happening.failure is not None:
            break
    return happenings


async def once(disturbance: Disturbance) -> Happening:
    """Does it, waits until it is over, and tells how that went."""
    began_s, over_s, failure = time.perf_counter(), None, None
    try:
        began_s = await disturbance.do()
        over_s = await disturbance.wait_until_over()
    except DisturbanceError as error:
        failure = str(error)
    return Happening(disturbance.name, disturbance.note, began_s, over_s, failure)
