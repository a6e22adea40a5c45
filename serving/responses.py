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
        outcome = await self._attempt(lambda: self._stream(send))
        if isinstance(outcome, str):
            await _send_body(send, outcome)
        elif self._started:
            await _send_body(send, f"data: {outcome.body()}\n\n{DONE}")
        else:
            await self._send_response(outcome.response(), send)

    async def whole(self, send: Send) -> None:
        """One JSON object."""
        outcome = await self._attempt(self._whole)
        whole = isinstance(outcome, str)
        await self._send_response(
            Response(outcome, media_type="application/json") if whole else outcome.response(), send
        )

    async def _attempt(self, work: Callable[[], Awaitable[str]]) -> str | ApiError:
        """What remains to be sent; every sequence is freed by then."""
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s), self._run:
                return await work()
        except TimeoutError:
            error = generation_timeout(limit_s)
        except GenerationError as failure:
            error = from_generation(failure, self._settings.retry_after_s)
        except Exception:
            LOG.exception("request %s failed in the gateway", self._answer.request_id)
            error = ApiError(500, "Internal error of the gateway; its log has the details.", code="internal")
        self._metrics.failures[error.code] += 1
        return error

    async def _stream(self, send: Send) -> str:
        """Sends all but the last events, which it returns."""
        run, renderer = self._run, StreamRenderer(self._answer)
        while True:
            deltas: dict[int, Delta] = {}
            await run.step(deltas)
            body = "".join([renderer.chunk(index, delta, run) for index, delta in deltas.items()])
            if body and not self._started:
                self._started = True
                headers = [*STREAM_HEADERS, self._id_header]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if run.done:
                return body + renderer.ending(run.usage)
            if body:
                await _send_body(send, body, more=True)

    async def _whole(self) -> str:
        run = self._run
        deltas: dict[int, Delta] = {}
        while not run.done:
            await run.step(deltas)
        return render_whole(self._answer, [deltas[choice.index] for choice in run.choices], run.usage)

    async def _send_response(self, response: Response, send: Send) -> None:
        headers = [*response.raw_headers, self._id_header]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})


async def _send_body(send: Send, text: str, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
