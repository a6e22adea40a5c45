"""The sequences of one request, read side by side; what waits while a client is slow is handed over at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from protos.generation_pb2 import FAILED, UNFINISHED, SequenceOutput, Submit
from serving.generator import GenerationError, Generator

Arrived = tuple[int, SequenceOutput, float]  # which submission, its message, and time.monotonic() when it came


class FanIn:
    """Runs every submission in a task of its own. `close` must be awaited, whatever happens."""

    def __init__(self, generator: Generator, submits: Sequence[Submit]) -> None:
        self._arrived: list[Arrived] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tasks = [
            asyncio.create_task(self._read(index, generator.generate(submit))) for index, submit in enumerate(submits)
        ]

    async def next(self) -> list[Arrived]:
        """Everything that arrived since the last call, waiting for at least one message.

        Raises GenerationError when a sequence failed, after what arrived before has been handed over.
        """
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        return arrived

    def cancel(self, index: int) -> None:
        """Ends one submission: its stop string was found."""
        self._tasks[index].cancel()

    async def close(self) -> None:
        """Cancels whatever still runs and waits until it has let go of its sequence."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, index: int, outputs: AsyncIterator[SequenceOutput]) -> None:
        finished = False
        try:
            async for output in outputs:
                if output.finish_reason == FAILED:
                    raise GenerationError(output.failure.code or "internal", output.failure.message)
                finished = output.finish_reason != UNFINISHED
                self._arrived.append((index, output, time.monotonic()))
                self._wake()
            if not finished:
                raise GenerationError("internal", "the sequence ended without a reason: a fault in the service")
        except Exception as error:  # the reader of `next` must hear of every end, or it would wait for ever
            self._failure = error
            self._wake()
        finally:
            await _close(outputs)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _close(outputs: AsyncIterator[SequenceOutput]) -> None:
    aclose = getattr(outputs, "aclose", None)
    if aclose is not None:
        await aclose()
