"""Frames: a fixed prefix, a protobuf header, a raw body. Sans-IO: bytes in, frames out.

    4 bytes   magic "MNT1" (the last byte is the format's version)
    4 bytes   header length, little-endian
    8 bytes   body length, little-endian
    header    protos/dispatch.proto, message Header
    body      raw elements, row-major, host byte order (little-endian on every supported machine)
"""

import struct
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from protos.dispatch_pb2 import Header
from transport.errors import FrameError

MAGIC = b"MNT1"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER_BYTES = 16 << 20
MAX_BODY_BYTES = 1 << 30

Body = np.ndarray[tuple[int], np.dtype[np.uint8]]
EMPTY_BODY: Body = np.empty(0, np.uint8)


class Frame(NamedTuple):
    """One message: `header` says what `body` (uint8, one dimension) holds."""

    header: Header
    body: Body


def encode_head(header: Header, body_bytes: int) -> bytes:
    """Returns the prefix and the header of a frame whose body has `body_bytes` bytes."""
    encoded = header.SerializeToString()
    return PREFIX.pack(MAGIC, len(encoded), body_bytes) + encoded


class FrameReader:
    """Cuts a byte stream into frames, with few copies: large bodies are received in place.

    The caller asks `buffer()` where to put the next bytes, receives into it, and reports the count to `advance()`.

    Args:
        max_header_bytes: A longer header is refused (FrameError).
        max_body_bytes: A longer body is refused (FrameError).
    """

    STAGING_BYTES = 256 << 10

    def __init__(self, max_header_bytes: int = MAX_HEADER_BYTES, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._staging = memoryview(bytearray(self.STAGING_BYTES))
        self._start = 0
        self._end = 0
        self._header: Header | None = None
        self._body: Body = EMPTY_BODY
        self._filled = 0

    def buffer(self) -> memoryview:
        """Returns where the next bytes belong; never empty."""
        if self._header is not None:
            return memoryview(self._body)[self._filled :]
        return self._staging[self._end :]

    def advance(self, num_bytes: int) -> list[Frame]:
        """Takes note of `num_bytes` new bytes in the last `buffer()`; returns the frames they completed.

        Raises:
            FrameError: Wrong magic or version, a length over its limit, or a header that does not parse.
        """
        frames: list[Frame] = []
        if self._header is not None:
            self._filled += num_bytes
            self._finish_body(frames)
        else:
            self._end += num_bytes
        while self._header is None and self._parse_head():
            self._take_staged_body()
            self._finish_body(frames)
        self._compact()
        return frames

    def _parse_head(self) -> bool:
        available = self._end - self._start
        if available < PREFIX.size:
            return False
        magic, header_bytes, body_bytes = PREFIX.unpack_from(self._staging, self._start)
        self._check(magic, header_bytes, body_bytes)
        needed = PREFIX.size + header_bytes
        if available < needed:
            self._make_room(needed)
            return False
        try:
            header = Header.FromString(bytes(self._staging[self._start + PREFIX.size : self._start + needed]))
        except DecodeError as error:
            raise FrameError(f"a frame header of {header_bytes} bytes does not parse: {error}") from error
        self._header = header
        self._body = np.empty(body_bytes, np.uint8) if body_bytes else EMPTY_BODY
        self._filled = 0
        self._start += needed
        return True

    def _check(self, magic: bytes, header_bytes: int, body_bytes: int) -> None:
        if magic != MAGIC:
            raise FrameError(f"a frame begins with {magic!r} instead of {MAGIC!r}: not Manta, or another version of it")
        if header_bytes > self._max_header_bytes:
            raise FrameError(f"a frame header of {header_bytes} bytes is over the limit of {self._max_header_bytes}")
        if body_bytes > self._max_body_bytes:
            raise FrameError(f"a frame body of {body_bytes} bytes is over the limit of {self._max_body_bytes}")

    def _take_staged_body(self) -> None:
        count = min(self._end - self._start, len(self._body))
        if count:
            self._body[:count] = np.frombuffer(self._staging, np.uint8, count, self._start)
        self._filled = count
        self._start += count

    def _finish_body(self, frames: list[Frame]) -> None:
        if self._header is not None and self._filled == len(self._body):
            frames.append(Frame(self._header, self._body))
            self._header, self._body, self._filled = None, EMPTY_BODY, 0

    def _make_room(self, needed: int) -> None:
        """Grows the staging buffer for a header that does not fit it."""
        if needed > len(self._staging):
            grown = memoryview(bytearray(needed + self.STAGING_BYTES))
            grown[: self._end - self._start] = self._staging[self._start : self._end]
            self._end -= self._start
            self._start = 0
            self._staging = grown

    def _compact(self) -> None:
        """Moves what is left to the front, so that the next receive has room."""
        left = self._end - self._start
        if self._start and (left == 0 or self._end == len(self._staging)):
            self._staging[:left] = bytes(self._staging[self._start : self._end])
            self._start, self._end = 0, left
