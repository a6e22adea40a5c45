"""The sequences of one request, read side by side; what waits while a client is slow is handed over at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from protos.generation_pb2 import FAILED, UNFINISHED, SequenceOutput, Submit
from serving.generator import GenerationError, Generator
from serving.openings import MAX_OPEN, Openings

Arrived = tuple[int, SequenceOutput, float]  # which submission, its message, and time.monotonic() when it came

# A sequence that is refused when nothing else of its request is open has no end to wait for.
REFUSED_PAUSE_S = 0.25


class FanIn:
    """Runs each submission in a task of its own, as many at a time as nodes take. `close` must be awaited at last."""

    def __init__(self, generator: Generator, submits: Sequence[Submit]) -> None:
        self._generator = generator
        self._submits = submits
        self._openings = Openings(len(submits), MAX_OPEN * max(1, generator.num_nodes))
        self._began_s = time.monotonic()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._arrived: list[Arrived] = []
        self._any_arrived = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._submitting = asyncio.Lock()
        self._closed = False
        self._open()

    async def next(self) -> list[Arrived]:
        """Everything that arrived since the last call, waiting for at least one message.

        Raises GenerationError when a sequence failed, after what arrived before has been handed over; `queue_full`
        only when not one of them was taken.
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
        """Ends one submission of which something has arrived: its stop string was found."""
        self._tasks[index].cancel()

    async def close(self) -> None:
        """Cancels whatever still runs and waits until it has let go of its sequence."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _open(self) -> None:
        if self._closed or self._failure is not None:
            return
        for index in self._openings.open():
            self._tasks[index] = asyncio.create_task(self._run(index))

    async def _run(self, index: int) -> None:
        try:
            await self._read(index)
        except Exception as error:  # the reader of `next` must hear of every end, or it would wait for ever
            refused = isinstance(error, GenerationError) and error.code == "queue_full"
            if not (refused and await self._waits_again(index)):
                self._failure = error
                self._wake()
        finally:
            self._openings.ended(index)
            self._open()

    async def _read(self, index: int) -> None:
        waited_s, finished = time.monotonic() - self._began_s, False
        async with self._submitting:  # each in a turn of the event loop of its own: a long prompt takes a millisecond
            submit = self._submits[index]
        outputs = self._generator.generate(submit)
        try:
            async for output in outputs:
                if output.finish_reason == FAILED:
                    raise GenerationError(output.failure.code or "internal", output.failure.message)
                finished = output.finish_reason != UNFINISHED
                if waited_s:
                    output.queue_s += waited_s
                    waited_s = 0.0
                self._arrive(index, output)
            if not finished:
                raise GenerationError("internal", "the sequence ended without a reason: a fault in the service")
        finally:
            await _close(outputs)

    async def _waits_again(self, index: int) -> bool:
        """Whether a refused submission may be tried again, once it may. Else the whole request is refused."""
        if self._openings.refused(index):
            return True
        if self._any_arrived:  # a request is not given up for its last sequences
            await asyncio.sleep(REFUSED_PAUSE_S)
        return self._any_arrived

    def _arrive(self, index: int, output: SequenceOutput) -> None:
        self._any_arrived = True
        self._arrived.append((index, output, time.monotonic()))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _close(outputs: AsyncIterator[SequenceOutput]) -> None:
    aclose = getattr(outputs, "aclose", None)
    if aclose is not None:
        await aclose()
