"""A streaming client of /v1/completions that costs little processor time, since it shares the machine with the server.

aiohttp, because its parser is C: with 16 streams in flight, one token's event cost 48-69 us of this client's processor
time, where httpx took 110-144 us (same events, same server, in turns).
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.load import RequestRecord, RunRecord
from benchmarks.sse import EventLines, StreamState, error_message
from benchmarks.workload import Prompt, Workload

CONNECT_TIMEOUT_S = 10.0
NETWORK_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


class ServerError(Exception):
    """A server cannot be measured: not reachable, or it lacks the model; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server to measure. `base_url` ends before `/v1`; a request that is silent for `timeout_s` has failed."""

    name: str
    base_url: str
    model: str
    timeout_s: float = 600.0

    def run(self, workload: Workload, on_request: Callable[[], None]) -> RunRecord:
        """Send the workload, keeping its concurrency in flight; `on_request` is called as each request ends."""
        return asyncio.run(self._run(workload, on_request))

    async def _run(self, workload: Workload, on_request: Callable[[], None]) -> RunRecord:
        prompts = iter(workload.prompts)
        async with open_session(self.timeout_s) as session:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            senders = [
                self._send_all(session, prompts, workload.output_len, on_request) for _ in range(workload.concurrency)
            ]
            records = await asyncio.gather(*senders)
            ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
        requests = tuple(record for sender in records for record in sender)
        return RunRecord(requests, ended_s - began_s, ended_cpu_s - began_cpu_s)

    async def _send_all(
        self,
        session: aiohttp.ClientSession,
        prompts: Iterator[Prompt],
        output_len: int,
        on_request: Callable[[], None],
    ) -> list[RequestRecord]:
        records: list[RequestRecord] = []
        for prompt in prompts:  # shared by all senders: each takes the next as soon as it is free
            body = completion_body(self.model, prompt, output_len)
            records.append(await complete(session, f"{self.base_url}/v1/completions", body))
            on_request()
        return records


def completion_body(model: str, prompt: Prompt, output_len: int) -> dict[str, Any]:
    """The request: greedy, streamed, exactly `output_len` tokens, usage at the end."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_len,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def complete(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], state: StreamState | None = None
) -> RequestRecord:
    """Send one request and time its chunks. A failure of any kind is in the record's `error`, never raised.

    What the stream said is in `state` afterwards, for a caller who wants more than times.
    """
    sent_s = time.perf_counter()
    chunks_s: list[float] = []
    state = state or StreamState()
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                return RequestRecord(sent_s, error=f"HTTP {response.status}: {await refusal(response)}")
            await read_stream(response, state, chunks_s)
    except NETWORK_ERRORS as error:
        # A server that reported an error and then broke the connection is quoted on the first.
        failure = state.error or f"{type(error).__name__}: {error}"
        return RequestRecord(sent_s, tuple(chunks_s), state.num_tokens, failure)
    # Of chunks of several tokens the count does not tell; but what came with the chunk before it is no token's time.
    if len(chunks_s) > 1 and (state.last_chunk_is_extra or (state.empty_finish and chunks_s[-1] == chunks_s[-2])):
        chunks_s.pop()
    return RequestRecord(sent_s, tuple(chunks_s), state.num_tokens, stream_failure(state))


async def read_stream(response: aiohttp.ClientResponse, state: StreamState, chunks_s: list[float]) -> None:
    """Read events until the stream ends; append the time of each chunk (events that arrive together share one)."""
    lines = EventLines()
    while piece := await response.content.readany():
        now_s = time.perf_counter()
        for payload in lines.feed(piece):
            chunks_s += [now_s] * state.take(payload)


def stream_failure(state: StreamState) -> str | None:
    """Why a stream that ended counts as failed; None where it completed."""
    if state.error is not None:
        return state.error
    if not state.done:
        return "the stream ended before [DONE]"
    return None if state.num_chunks else "the stream held no output"


async def refusal(response: aiohttp.ClientResponse) -> str:
    """The message of a response that is no 200."""
    try:
        return error_message(await response.json(content_type=None))
    except ValueError:
        return (await response.text(errors="replace"))[:200] or "no message"


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """A session without a limit on connections; the API key is taken from OPENAI_API_KEY where that is set."""
    key = os.environ.get("OPENAI_API_KEY")
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


def connect(address: str, model: str | None, timeout_s: float) -> Server:
    """Ask the server at `address` ("URL" or "name=URL", with or without /v1) for its models and choose one.

    Default: its first. Raises ServerError where it is not reachable or does not serve `model`.
    """
    name, base_url = split_address(address)
    served = asyncio.run(served_models(base_url))
    if model is not None and served and model not in served:
        raise ServerError(
            f"{base_url} does not serve {model!r}; it serves {', '.join(served)}: give --model one of them"
        )
    chosen = model or (served[0] if served else None)
    if chosen is None:
        raise ServerError(f"{base_url}/v1/models names no model; say which to ask for with --model")
    return Server(name, base_url, chosen, timeout_s)


def split_address(address: str) -> tuple[str, str]:
    """Split "name=URL" or "URL" into a name (default: host and port) and a URL without a trailing /v1.

    Raises ServerError where the URL is none of HTTP.
    """
    prefix, separator, rest = address.partition("=")
    named = bool(separator) and "://" not in prefix
    url = (rest if named else address).rstrip("/").removesuffix("/v1")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ServerError(f"{address!r} is no server address; give a URL such as http://127.0.0.1:8000, or name=URL")
    return (prefix if named else parts.netloc), url


async def served_models(base_url: str) -> list[str]:
    """The names under /v1/models; none where the server has no such page. Raises ServerError if it does not answer."""
    try:
        async with open_session(CONNECT_TIMEOUT_S) as session, session.get(f"{base_url}/v1/models") as response:
            if response.status == 404:
                return []
            if response.status != 200:
                raise ServerError(f"{base_url}/v1/models answered HTTP {response.status}: {await refusal(response)}")
            listing = await response.json(content_type=None)
            return [str(model["id"]) for model in listing["data"]]
    except NETWORK_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ServerError(f"cannot reach {base_url} ({reason}); is the server up, and is this its address?") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"{base_url}/v1/models did not answer as OpenAI's API does; is it such a server?") from error
