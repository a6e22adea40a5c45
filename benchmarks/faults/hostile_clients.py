"""Clients that mean no good, or know no better: each keeps connections for itself until it is told that it is over."""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.client import Server

BYTE_PAUSE_S = 0.5  # between two bytes of a slow client
SHORT_PAUSE_S = 0.2  # after a connection that the server has ended, or that was left
LONG_ANSWER_TOKENS = 2048
TAKEN_BYTES = 1  # what a stalled reader takes of an answer before it stops reading
NEVER_SENT = 4096  # bytes that a slow body announces


@dataclass(frozen=True, slots=True)
class Victim:
    """A server to be hostile to. `positions`: of the longest answer."""

    server: Server
    positions: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.server.base_url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def head(self, num_bytes: int) -> bytes:
        """The head of a completion request with so long a body."""
        key = os.environ.get("OPENAI_API_KEY")
        keyed = f"Authorization: Bearer {key}\r\n" if key else ""
        path = urlsplit(self.server.base_url).path.rstrip("/")
        return (
            f"POST {path}/v1/completions HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\n{keyed}"
            f"Content-Type: application/json\r\nContent-Length: {num_bytes}\r\n\r\n"
        ).encode()

    def long_request(self) -> bytes:
        """A whole request for the stream of a long answer."""
        tokens = min(LONG_ANSWER_TOKENS, self.positions - 8)
        body = {"model": self.server.model, "prompt": "a", "max_tokens": tokens, "ignore_eos": True}
        encoded = json.dumps({**body, "stream": True}).encode()
        return self.head(len(encoded)) + encoded


Behaviour = Callable[[Victim, asyncio.Event, random.Random], Awaitable[None]]
"""One connection of one client, from its beginning to its end; ends soon after the event."""


async def slow_headers(victim: Victim, over: asyncio.Event, rng: random.Random) -> None:
    """Sends a head that never ends, a byte now and then."""
    del rng
    await _drip(victim, b"POST /v1/completions HTTP/1.1\r\nX-Slow: ", over)


async def slow_body(victim: Victim, over: asyncio.Event, rng: random.Random) -> None:
    """Announces a body and sends a byte of it now and then."""
    del rng
    await _drip(victim, victim.head(NEVER_SENT) + b'{"prompt": "', over)


async def stalled_reader(victim: Victim, over: asyncio.Event, rng: random.Random) -> None:
    """Asks for long streams, and stops reading when they begin."""
    del rng
    reader, writer = await asyncio.open_connection(*victim.address, limit=TAKEN_BYTES)
    try:
        writer.write(victim.long_request())
        await reader.read(TAKEN_BYTES)
        await over.wait()
    finally:
        writer.transport.abort()


async def leaver(victim: Victim, over: asyncio.Event, rng: random.Random) -> None:
    """Asks for long streams and leaves: before the answer, or in its middle."""
    reader, writer = await asyncio.open_connection(*victim.address)
    try:
        writer.write(victim.long_request())
        await writer.drain()
        if rng.random() < 0.5:
            await asyncio.wait_for(reader.read(256), 30.0)
        await ends_within(over, rng.uniform(0.0, SHORT_PAUSE_S))
    finally:
        writer.transport.abort()


BEHAVIOURS: Mapping[str, Behaviour] = {
    "slow-headers": slow_headers,
    "slow-body": slow_body,
    "stalled-reader": stalled_reader,
    "leaver": leaver,
}


class HostileClients:
    """So many clients of each behaviour, at once. `num_connections`: that they made, by behaviour."""

    def __init__(self, victim: Victim, number: int, behaviours: Mapping[str, Behaviour], seed: int) -> None:
        self._victim = victim
        self._number = number
        self._behaviours = behaviours
        self._seed = seed
        self.num_connections = dict.fromkeys(behaviours, 0)

    async def run(self, over: asyncio.Event) -> None:
        """Goes on until the event, one connection after the other for each client."""
        await asyncio.gather(
            *(self._client(name, index, over) for name in self._behaviours for index in range(self._number))
        )

    async def _client(self, name: str, index: int, over: asyncio.Event) -> None:
        rng = random.Random(f"{self._seed}/{name}/{index}")
        while not over.is_set():
            self.num_connections[name] += 1
            with suppress(OSError, asyncio.TimeoutError):  # the server has ended it, which is its right
                await self._behaviours[name](self._victim, over, rng)
            await ends_within(over, SHORT_PAUSE_S)


async def ends_within(over: asyncio.Event, seconds: float) -> bool:
    """Waits so long, or until the event; returns whether that was set."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
    return over.is_set()


async def _drip(victim: Victim, beginning: bytes, over: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection(*victim.address)
    try:
        writer.write(beginning)
        while not await ends_within(over, BYTE_PAUSE_S) and not reader.at_eof():
            writer.write(b"a")
            await writer.drain()
    finally:
        writer.transport.abort()
