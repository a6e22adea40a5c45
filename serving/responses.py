"""Generation over ASGI. A client that goes away cancels the work at once, streaming or not."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.choice import Delta
from serving.errors import ApiError, from_generation, generation_timeout
from serving.generator import GenerationError
from serving.metrics import GatewayMetrics
from serving.outlet import ClientStalled, Outlet
from serving.rendering import DONE, Answer, StreamRenderer, render_whole
from serving.run import Run
from serving.settings import GatewaySettings

LOG = logging.getLogger(__name__)

STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the stream
)


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
        if not watch.cancelled() and (broken := watch.exception()) is not None:
            LOG.warning("the connection could not be watched, so its request was cancelled: %r", broken)
        if not work.cancelled():
            work.result()  # raises what the work raised


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Delivery:
    """Sends one answer, as a stream or whole, and turns every failure into OpenAI's error shape."""

    def __init__(self, run: Run, answer: Answer, settings: GatewaySettings, metrics: GatewayMetrics) -> None:
        self._run = run
        self._answer = answer
        self._settings = settings
        self._metrics = metrics
        self._id_header = (b"x-request-id", answer.request_id.encode())
        self._started = False

    async def stream(self, send: Send) -> None:
        """Server-sent events. The status goes out with the first tokens, so that a full queue is still a 429."""
        await self._deliver(send, self._send_stream)

    async def whole(self, send: Send) -> None:
        """One JSON object."""
        await self._deliver(send, self._send_whole)

    async def _deliver(self, send: Send, work: Callable[[Outlet], Awaitable[None]]) -> None:
        limits = self._settings.limits
        try:
            async with Outlet(send, limits.delivery_timeout_s, limits.max_unread_bytes) as outlet:
                await work(outlet)
        except ClientStalled as stalled:
            self._metrics.failures["client_stalled"] += 1
            LOG.warning("request %s was given up: %s", self._answer.request_id, stalled)
            # Returning before the end of the answer makes the server close the connection.

    async def _send_stream(self, outlet: Outlet) -> None:
        outcome = await self._attempt(lambda: self._stream(outlet))
        if not isinstance(outcome, ApiError):
            await outlet.body(outcome)
        elif self._started:
            await outlet.body([f"data: {outcome.body()}\n\n{DONE}"])
        else:
            await self._send_error(outcome, outlet)

    async def _send_whole(self, outlet: Outlet) -> None:
        outcome = await self._attempt(self._whole)
        if isinstance(outcome, ApiError):
            await self._send_error(outcome, outlet)
            return
        length = str(sum(map(len, outcome))).encode()  # it is ASCII
        await outlet.start(200, [(b"content-length", length), (b"content-type", b"application/json"), self._id_header])
        await outlet.body(outcome)

    async def _attempt(self, work: Callable[[], Awaitable[list[str]]]) -> list[str] | ApiError:
        """What remains to be sent, in pieces; every sequence is freed by then. Raises ClientStalled."""
        limit_s = self._settings.request_timeout_s  # from the request's arrival, so that a slow body counts too
        left_s = limit_s - (time.monotonic() - self._answer.job.arrival_s)
        try:
            async with asyncio.timeout(left_s), self._run:
                return await work()
        except TimeoutError:
            error = generation_timeout(limit_s)
        except GenerationError as failure:
            error = from_generation(failure, self._settings.retry_after_s)
        except ClientStalled:
            raise
        except Exception:
            LOG.exception("request %s failed in the gateway", self._answer.request_id)
            error = ApiError(500, "Internal error of the gateway; its log has the details.", code="internal")
        self._metrics.failures[error.code] += 1
        return error

    async def _stream(self, outlet: Outlet) -> list[str]:
        """Sends all but the last events, which it returns."""
        run, renderer = self._run, StreamRenderer(self._answer)
        while True:
            deltas: dict[int, Delta] = {}
            await run.step(deltas)
            body: list[str] = []
            for index, delta in deltas.items():
                plain = renderer.plain_chunk(index, delta)
                body += await renderer.full_chunk(index, delta, run) if plain is None else [plain]
            has_news = any(body)
            if has_news and not self._started:
                self._started = True
                await outlet.start(200, [*STREAM_HEADERS, self._id_header])
            if run.done:
                return [*body, renderer.ending(run.usage)]
            if has_news:
                await outlet.body(body, more=True)

    async def _whole(self) -> list[str]:
        run = self._run
        deltas: dict[int, Delta] = {}
        while not run.done:
            await run.step(deltas)
        return await render_whole(self._answer, [deltas.pop(choice.index) for choice in run.choices], run.usage)

    async def _send_error(self, error: ApiError, outlet: Outlet) -> None:
        response = error.response()
        await outlet.start(response.status_code, [*response.raw_headers, self._id_header])
        await outlet.body([error.body()])
