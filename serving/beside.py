"""Work that takes longer than the event loop should stand still for: in a thread beside it, in slices, or in turns."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Tokens of work that take about a millisecond; more goes to a thread, whose hop costs a tenth of that.
THREAD_FROM_TOKENS = 1024
# Each thread that computes in Python keeps the event loop waiting for the interpreter's lock, 5 ms at a time: so few
# at once that one client's many requests do not hold up others. What they hold of memory is bounded with them.
MAX_THREADS = 2
SLICE_S = 0.005
TURN_FROM_BYTES = 1 << 16  # of a body, whose parsing takes about two milliseconds

_threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="beside")


async def beside(work: Callable[[], T], num_tokens: int) -> T:
    """Does pure work on so many tokens: at once if they are few, else in a thread, while the event loop goes on."""
    return work() if num_tokens < THREAD_FROM_TOKENS else await in_thread(work)


async def in_thread(work: Callable[[], T]) -> T:
    """Does pure work in one of MAX_THREADS threads, once one is free."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


class Slices:
    """Lets the event loop go on now and then: `await slices.pause()` does nothing until it has worked for SLICE_S."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    async def pause(self) -> None:
        """To be awaited after each small piece of work."""
        if time.perf_counter() - self._began_s >= SLICE_S:
            await asyncio.sleep(0)
            self._began_s = time.perf_counter()


class OneByOne:
    """Parses large bodies that have arrived together one after the other.

    Between two, the event loop is left to others for as long as the first one took: what they ask for takes many turns
    of it, each of which would else wait for another body.
    """

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()

    async def take(self, work: Callable[[], T], num_bytes: int) -> T:
        """Does work on so many bytes: at once if they are few, else when it is their turn."""
        if num_bytes < TURN_FROM_BYTES:
            return work()
        await self._one_at_a_time.acquire()
        began_s = time.perf_counter()
        try:
            return work()
        finally:
            took_s = time.perf_counter() - began_s
            asyncio.get_running_loop().call_later(took_s, self._one_at_a_time.release)
