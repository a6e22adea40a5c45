"""Work that takes longer than the event loop should stand still for: in a thread beside it, or in slices."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Tokens of work that take about a millisecond; more goes to a thread, whose hop costs a tenth of that.
THREAD_FROM_TOKENS = 1024
SLICE_S = 0.005


async def beside(work: Callable[[], T], num_tokens: int) -> T:
    """Does pure work on so many tokens: at once if they are few, else in a thread, while the event loop goes on."""
    return work() if num_tokens < THREAD_FROM_TOKENS else await asyncio.to_thread(work)


class Slices:
    """Lets the event loop go on now and then: `await slices.pause()` does nothing until it has worked for SLICE_S."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    async def pause(self) -> None:
        """To be awaited after each small piece of work."""
        if time.perf_counter() - self._began_s >= SLICE_S:
            await asyncio.sleep(0)
            self._began_s = time.perf_counter()
