"""Steady load: clients that each work through a fixed list of requests, and what each request got."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from benchmarks.client import Server, complete, completion_body, open_session
from benchmarks.load import RequestRecord, RunRecord
from benchmarks.sse import StreamState

NUM_LOGPROBS = 2  # the best and the second: what a near-tie is seen by
PAUSE_AFTER_FAILURE_S = 0.5  # a service that refuses at once is not to be asked a thousand times a second

Key = tuple[int, int]  # a client, and a request's place in its list
Prompts = tuple[tuple[list[int], ...], ...]  # of each client


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got. `margins` are there where the phase asked for log-probabilities: see `StreamState`."""

    key: Key
    record: RequestRecord
    ended_s: float
    token_ids: tuple[int, ...]
    margins: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the run: the answers of every client, in the order in which they ended."""

    answers: tuple[Answer, ...]
    began_s: float
    ended_s: float
    client_cpu_s: float

    @property
    def run(self) -> RunRecord:
        """The same for the statistics of load.py."""
        return RunRecord(tuple(one.record for one in self.answers), self.ended_s - self.began_s, self.client_cpu_s)


@dataclass(frozen=True, slots=True)
class SteadyLoad:
    """Clients, each with its own prompts; a client sends its next request when its last one has ended.

    Args:
        interval_s: How much later than the last one it is sent at least.
    """

    server: Server
    prompts: Prompts
    output_len: int
    interval_s: float = 0.0

    async def run(
        self, on_request: Callable[[Answer], None], *, until: asyncio.Event | None = None, logprobs: bool = False
    ) -> Phase:
        """Runs every client's list once; with `until`, over and over until it is set, and then to the request's end."""
        answers: list[Answer] = []

        def note(answer: Answer) -> None:
            answers.append(answer)
            on_request(answer)

        async with open_session(self.server.timeout_s) as session:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            clients = range(len(self.prompts))
            await asyncio.gather(*(self._run_client(session, client, until, logprobs, note) for client in clients))
            return Phase(tuple(answers), began_s, time.perf_counter(), time.process_time() - began_cpu_s)

    async def _run_client(
        self,
        session: aiohttp.ClientSession,
        client: int,
        until: asyncio.Event | None,
        logprobs: bool,
        note: Callable[[Answer], None],
    ) -> None:
        while True:
            for index in range(len(self.prompts[client])):
                answer = await self._ask(session, (client, index), logprobs)
                note(answer)
                if until is not None and until.is_set():
                    return
                pause_s = answer.record.sent_s + self.interval_s - time.perf_counter()
                if answer.record.error is not None:
                    pause_s = max(pause_s, PAUSE_AFTER_FAILURE_S)
                if pause_s > 0 and await _is_set_within(until, pause_s):
                    return
            if until is None:
                return

    async def _ask(self, session: aiohttp.ClientSession, key: Key, logprobs: bool) -> Answer:
        client, index = key
        body = completion_body(self.server.model, self.prompts[client][index], self.output_len)
        body["return_token_ids"] = True
        if logprobs:
            body["logprobs"] = NUM_LOGPROBS
        state = StreamState()
        record = await complete(session, f"{self.server.base_url}/v1/completions", body, state)
        return Answer(key, record, time.perf_counter(), tuple(state.token_ids), tuple(state.margins))


async def _is_set_within(event: asyncio.Event | None, seconds: float) -> bool:
    """Waits so long, or until the event; returns whether that is set."""
    if event is None:
        await asyncio.sleep(seconds)
        return False
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
