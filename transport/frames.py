"""Frames: a fixed prefix, a protobuf header, a raw body. Sans-IO: bytes in, frames out.

| bytes | content                                                                               |
| ----- | ------------------------------------------------------------------------------------- |
| 4     | magic "MNT1"; its last byte is the format's version                                   |
| 4     | header length, little-endian                                                          |
| 8     | body length, little-endian                                                            |
| ...   | header: protos/dispatch.proto, message Header                                         |
| ...   | body: raw elements, row-major, host byte order (little-endian on supported machines)  |
"""

import struct
from typing import NamedTuple, NoReturn

import numpy as np
from google.protobuf.message import DecodeError

from protos.dispatch_pb2 import Header
from transport.errors import FrameError

MAGIC = b"MNT1"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER_BYTES = 16 << 20
MAX_BODY_BYTES = 1 << 30

Body = memoryview  # of bytes, one dimension
EMPTY_BODY: Body = memoryview(b"")


class Frame(NamedTuple):
    """One message: `header` says what `body` holds."""

    header: Header
    body: Body


def encode_head(header: Header, body_bytes: int) -> bytes:
    """Returns the prefix and the header of a frame whose body has `body_bytes` bytes."""
    encoded = header.SerializeToString()
    return PREFIX.pack(MAGIC, len(encoded), body_bytes) + encoded


class FrameReader:
    """Cuts a byte stream into frames, with few copies: large bodies are received in place.

    The caller receives into `space`, reports the count to `advance()`, then takes frames with `next_frame()` until
    there is none, and only then receives again. The limits may be changed between two frames.

    Args:
        max_header_bytes: A longer header is refused (FrameError).
        max_body_bytes: A longer body is refused (FrameError).
    """

    STAGING_BYTES = 256 << 10

    def __init__(self, max_header_bytes: int = MAX_HEADER_BYTES, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes
        self._staging = memoryview(bytearray(self.STAGING_BYTES))
        self._start = 0  # of what is in the staging buffer and has not been taken
        self._end = 0
        self._header: Header | None = None  # of the frame whose body is being received, in place
        self._body: Body = EMPTY_BODY
        self.space = self._staging
        """Where the next bytes belong, once `next_frame` has returned None; never empty then."""

    def advance(self, num_bytes: int) -> None:
        """Takes note of `num_bytes` new bytes in `space`."""
        if self._header is None:
            self._end += num_bytes
        else:
            self.space = self.space[num_bytes:]

    def next_frame(self) -> Frame | None:
        """Returns the next frame, or None if the bytes received so far complete no other one.

        Raises:
            FrameError: Wrong magic or version, a length over its limit, or a header that does not parse.
        """
        if self._header is not None:
            return self._finish_body()
        if self._start == self._end:
            self._start, self._end, self.space = 0, 0, self._staging
            return None
        head_end = self._start + PREFIX.size
        if head_end > self._end:
            self._make_room(PREFIX.size)
            return None
        magic, header_bytes, body_bytes = PREFIX.unpack_from(self._staging, self._start)
        if magic != MAGIC or header_bytes > self.max_header_bytes or body_bytes > self.max_body_bytes:
            self._refuse(magic, header_bytes, body_bytes)
        body_start = head_end + header_bytes
        if body_start > self._end:
            self._make_room(PREFIX.size + header_bytes)
            return None
        header = _parse(self._staging[head_end:body_start])
        self._start = body_start
        return self._take_body(header, body_bytes) if body_bytes else Frame(header, EMPTY_BODY)

    def _take_body(self, header: Header, body_bytes: int) -> Frame | None:
        """Copies the part of a body that has been received with its header."""
        body = np.empty(body_bytes, np.uint8).data
        body_end = self._start + body_bytes
        if body_end <= self._end:
            body[:] = self._staging[self._start : body_end]
            self._start = body_end
            return Frame(header, body)
        staged = self._end - self._start
        body[:staged] = self._staging[self._start : self._end]
        self._start = self._end = 0
        self._header, self._body, self.space = header, body, body[staged:]
        return None

    def _finish_body(self) -> Frame | None:
        if len(self.space) or self._header is None:
            return None
        frame = Frame(self._header, self._body)
        self._header, self._body, self.space = None, EMPTY_BODY, self._staging
        return frame

    def _refuse(self, magic: bytes, header_bytes: int, body_bytes: int) -> NoReturn:
        if magic != MAGIC:
            raise FrameError(f"a frame begins with {magic!r} instead of {MAGIC!r}: not Manta, or another version of it")
        if header_bytes > self.max_header_bytes:
            raise FrameError(f"a frame header of {header_bytes} bytes is over the limit of {self.max_header_bytes}")
        raise FrameError(f"a frame body of {body_bytes} bytes is over the limit of {self.max_body_bytes}")

    def _make_room(self, needed: int) -> None:
        """Finds the space behind an incomplete head of `needed` bytes, moving it to the front if it would not fit."""
        if self._start + needed > len(self._staging):
            kept = bytes(self._staging[self._start : self._end])
            if needed > len(self._staging):
                self._staging = memoryview(bytearray(needed + self.STAGING_BYTES))
            self._staging[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self.space = self._staging[self._end :]


def _parse(encoded: memoryview) -> Header:
    try:
        return Header.FromString(bytes(encoded))
    except DecodeError as error:
        raise FrameError(f"a frame header of {len(encoded)} bytes does not parse: {error}") from error
