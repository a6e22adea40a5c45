"""One answer for all who ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Asks anew only when the last answer has come, however many wait: each gets one that was asked for after it came.

    So what is asked hears one question at a time, where a crowd of clients would make it a crowd of questions.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None  # has not asked yet

    async def get(self) -> T:
        """The answer. Raises what asking raises, to all who wait for it."""
        if self._next is None:
            self._next = asyncio.create_task(self._ask_next())
        return await asyncio.shield(self._next)  # one who leaves takes nothing from the others

    async def _ask_next(self) -> T:
        async with self._asking:
            self._next = None
            return await self._ask()
