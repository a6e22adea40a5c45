"""Generation over ASGI. A client that goes away cancels the work at once, streaming or not."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.choice import Delta
from serving.errors import ApiError, from_generation, generation_timeout
from serving.generator import GenerationError
from serving.metrics import GatewayMetrics
from serving.rendering import DONE, StreamRenderer, render_whole
from serving.run import Run
from serving.settings import GatewaySettings

LOG = logging.getLogger(__name__)

# Given a function that starts and feeds the response; the other side of `GenerationResponse`.
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the stream
]


class GenerationResponse(Response):
    """Runs `work(send)` until it is done or the client has left."""

    def __init__(self, work: Callable[[Send], Coroutine[None, None, None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification; `receive` must have delivered the whole body before."""
        del scope
        work = asyncio.ensure_future(self._work(send))
        watch = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            work.cancel()
            await asyncio.wait((work, watch))
        if not work.cancelled():
            work.result()  # raises what the work raised


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Delivery:
    """Sends one answer, as a stream or whole, and turns every failure into OpenAI's error shape."""

    def __init__(self, run: Run, renderer: StreamRenderer, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._run = run
        self._renderer = renderer
        self._settings = settings
        self._metrics = metrics
        self._started = False

    async def stream(self, send: Send) -> None:
        """Server-sent events. The status is sent with the first tokens, so that a full queue is still a 429."""
        error = await self._attempt(self._stream, send)
        if error is None:
            return
        if not self._started:
            await _send_response(error.response(), send)
        else:
            await _send_body(send, f"data: {error.body()}\n\n{DONE}", more=False)

    async def whole(self, send: Send) -> None:
        """One JSON object."""
        error = await self._attempt(self._whole, send)
        if error is not None:
            await _send_response(error.response(), send)

    async def _attempt(self, deliver: Callable[[Send, Run], Awaitable[None]], send: Send) -> ApiError | None:
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s), self._run as run:
                await deliver(send, run)
            return None
        except TimeoutError:
            error = generation_timeout(limit_s)
        except GenerationError as failure:
            error = from_generation(failure, self._settings.retry_after_s)
        except OSError:  # the connection broke under `send`: nobody is left to be told
            return None
        except Exception:
            LOG.exception("a request failed in the gateway")
            error = ApiError(500, "Internal error of the gateway; its log has the details.", code="internal")
        self._metrics.failures[error.code] += 1
        return error

    async def _stream(self, send: Send, run: Run) -> None:
        while not run.done:
            deltas: dict[int, Delta] = {}
            await run.step(deltas)
            body = "".join([self._renderer.chunk(index, delta, lambda: run.usage) for index, delta in deltas.items()])
            if run.done:
                break
            if body:
                await self._send_events(send, body)
        await self._send_events(send, body + self._renderer.ending(run.usage), more=False)

    async def _whole(self, send: Send, run: Run) -> None:
        deltas: dict[int, Delta] = {}
        while not run.done:
            await run.step(deltas)
        await _send_response(self._renderer.whole([deltas[i] for i in range(len(run.choices))], run.usage), send)

    async def _send_events(self, send: Send, body: str, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self._renderer.headers})
        await _send_body(send, body, more)
