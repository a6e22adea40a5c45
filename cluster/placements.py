"""Where groups of reservations are placed, asked of Ray once for all who wait for the same group."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup

FRESH_S = 0.05  # an answer that is no older will do
Read = Callable[[PlacementGroup], frozenset[int]]


@dataclass
class _Asked:
    answer: asyncio.Task[frozenset[int]]
    answered_s: float = float("inf")


class Placements:
    """Asks beside the event loop: every replica of a service may wait for the one group of all first replicas.

    Args:
        read: Returns the bundles of a group that have a host which lives; blocks.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._asked: dict[Any, _Asked] = {}

    async def is_placed(self, group: PlacementGroup, index: int) -> bool:
        """Whether a bundle of a group has a host that lives."""
        return index in await asyncio.shield(self._ask(group))

    def _ask(self, group: PlacementGroup) -> asyncio.Task[frozenset[int]]:
        now_s, loop = time.monotonic(), asyncio.get_running_loop()
        old = [key for key, asked in self._asked.items() if now_s > asked.answered_s + FRESH_S]
        for key in old:
            del self._asked[key]
        asked = self._asked.get(group.id)
        if asked is None or asked.answer.get_loop() is not loop:
            asked = self._asked[group.id] = _Asked(loop.create_task(asyncio.to_thread(self._read, group)))
            asked.answer.add_done_callback(lambda _, asked=asked: setattr(asked, "answered_s", time.monotonic()))
        return asked.answer
