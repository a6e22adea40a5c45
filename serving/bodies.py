"""Request bodies, read and parsed within limits: the first thing that is wrong ends the work.

A body is parsed under the interpreter's lock, so that nobody else is served meanwhile. What that may take is bounded by
the body's size, by how many lists and objects it holds (each is worth dozens of numbers in time and memory), by giving
up at the first finding, and, of large bodies that arrive together, by turns (docs/decisions/010-cost-of-a-request.md).
What all of them hold of memory, arriving slowly or waiting for their turn, is bounded too.
"""

import asyncio
import codecs
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from serving.beside import OneByOne
from serving.errors import body_timeout, from_validation, invalid, too_large, too_many_bodies, unsupported_encoding
from serving.settings import GatewaySettings, RequestLimits

BodyT = TypeVar("BodyT", bound=BaseModel)
MAX_LENGTH_DIGITS = 18  # of a Content-Length: enough to tell
QUOTE = ord('"')
OPENINGS = (ord("["), ord("{"))
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin, or go on, with a zero byte


@dataclass(eq=False)
class _Arriving:
    """A body that is not parsed yet; `ending` gives it up."""

    ending: asyncio.Timeout
    num_bytes: int = 0
    refused: bool = False


class Bodies:
    """Reads the bodies that come to one gateway, and bounds what those that are not parsed yet hold together.

    Beyond `max_bodies_bytes` (two of the largest size always fit) the largest is refused, so that clients which send
    large ones, slowly or at once, do not keep small ones out. `num_bytes`: what they hold.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._limits = settings.limits
        self._max_bytes = max(settings.limits.max_bodies_bytes, 2 * settings.limits.max_body_bytes)
        self._retry_after_s = settings.retry_after_s
        self._one_by_one = OneByOne()
        self._arriving: set[_Arriving] = set()  # those that hold something
        self.num_bytes = 0

    async def read(self, request: Request, kind: type[BodyT]) -> BodyT:
        """The validated body. Raises ApiError (400, 408, 413, 415, 429)."""
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise unsupported_encoding(encoding)
        arriving = _Arriving(asyncio.timeout(None))
        try:
            async with arriving.ending:
                data = await _read_limited(request, self._limits, lambda num_bytes: self._hold(arriving, num_bytes))
                if arriving.refused:
                    raise TimeoutError
                return await self._one_by_one.take(lambda: parse_body(data, kind, self._limits), len(data))
        except TimeoutError as error:
            if not arriving.refused:
                raise
            raise too_many_bodies(self._max_bytes, self._retry_after_s) from error
        finally:
            self._drop(arriving)

    def _hold(self, arriving: _Arriving, num_bytes: int) -> None:
        if arriving.refused:
            return
        self._arriving.add(arriving)
        arriving.num_bytes += num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            largest = max(self._arriving, key=lambda one: one.num_bytes)
            self._drop(largest)
            largest.refused = True
            largest.ending.reschedule(0.0)

    def _drop(self, arriving: _Arriving) -> None:
        if arriving in self._arriving:
            self._arriving.remove(arriving)
            self.num_bytes -= arriving.num_bytes


def parse_body(data: bytes, kind: type[BodyT], limits: RequestLimits) -> BodyT:
    """A body of at most `limits.max_body_bytes`, validated; a byte-order mark may precede it. Raises ApiError (400)."""
    if data.startswith(WIDE_MARKS) or b"\0" in data[:4]:
        raise invalid("The request body is not UTF-8 but UTF-16 or UTF-32, or no text at all: send JSON in UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    if count_openings(data, limits.max_json_containers) > limits.max_json_containers:
        raise invalid(
            f"The request body holds more than {limits.max_json_containers} lists and objects "
            "(limits.request.max_messages and max_prompts): send several requests."
        )
    try:
        return kind.model_validate_json(data, context=limits)
    except ValidationError as error:
        raise from_validation(error) from error


def count_openings(data: bytes, enough: int) -> int:
    """How many lists and objects a JSON text opens. Exact above `enough` only: below, strings may be counted too."""
    crude = sum(map(data.count, (b"[", b"{")))
    if crude <= enough:
        return crude
    plain = np.frombuffer(data.replace(b"\\\\", b"..").replace(b'\\"', b".."), dtype=np.uint8)
    outside = np.bitwise_xor.accumulate(plain == QUOTE) == 0
    return sum(int(np.count_nonzero(outside & (plain == opening))) for opening in OPENINGS)


async def _read_limited(request: Request, limits: RequestLimits, hold: Callable[[int], None]) -> bytes:
    limit_bytes, timeout_s = limits.max_body_bytes, limits.body_timeout_s
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:MAX_LENGTH_DIGITS]) > limit_bytes:
        raise too_large(limit_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                data += part
                if len(data) > limit_bytes:
                    raise too_large(limit_bytes)
                hold(len(part))
    except TimeoutError as error:
        raise body_timeout(timeout_s) from error
    except ClientDisconnect as error:
        raise invalid("The client left before the request body was complete.") from error
    return bytes(data)
