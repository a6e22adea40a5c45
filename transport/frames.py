"""Frames: a fixed prefix, a protobuf header, a raw body. Sans-IO: bytes in, frames out.

| bytes | content                                                                               |
| ----- | ------------------------------------------------------------------------------------- |
| 4     | magic "MNT3"; its last byte is the format's version                                   |
| 4     | header length, little-endian                                                          |
| 8     | body length, little-endian                                                            |
| 8     | call id, little-endian: chosen by the caller, repeated in the answer; 0 for one way   |
| ...   | header: protos/dispatch.proto, message Header                                         |
| ...   | body: raw elements, row-major, host byte order (little-endian on supported machines)  |

Between hosts, header and body are sealed once the handshake is complete, and each is followed by a tag
(`transport/sealing.py`); the lengths are those of what is sealed.

The call id is not in the header, so that the calls of every step, which ask for the same layers and shapes again, have
equal headers: whoever receives them decodes each but once (`transport/tensors.py`).
"""

import struct
from typing import NamedTuple, NoReturn

import numpy as np
from google.protobuf.message import DecodeError

from protos.dispatch_pb2 import Header
from transport.errors import FrameError, TooLargeError, VersionError
from transport.sealing import TAG_BYTES, Opener

FORMAT = b"MNT"  # what every version's frames begin with
MAGIC = FORMAT + b"3"
TLS_RECORD = b"\x16\x03"
PREFIX = struct.Struct("<4sIQQ")
MAX_HEADER_BYTES = 16 << 20
MAX_BODY_BYTES = 1 << 30

Body = memoryview  # of bytes, one dimension
EMPTY_BODY: Body = memoryview(b"")


class Frame(NamedTuple):
    """One message: its header, still encoded, says what `body` holds."""

    call_id: int
    encoded: bytes
    body: Body

    @property
    def header(self) -> Header:
        """The header, decoded anew.

        Raises:
            FrameError: It does not parse.
        """
        return parse_header(self.encoded)


def encode_head(header: Header, body_bytes: int, call_id: int = 0) -> bytes:
    """Returns the prefix and the header of a frame whose body has `body_bytes` bytes.

    Raises:
        TooLargeError: Nobody would take it.
    """
    encoded = header.SerializeToString()
    header_bytes = len(encoded)
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise TooLargeError(
            f"a message with a header of {header_bytes} bytes and a body of {body_bytes} was to be sent; "
            f"allowed: {MAX_HEADER_BYTES} and {MAX_BODY_BYTES}"
        )
    return PREFIX.pack(MAGIC, header_bytes, body_bytes, call_id) + encoded


def parse_header(encoded: bytes) -> Header:
    """Returns a decoded header.

    Raises:
        FrameError: It does not parse.
    """
    try:
        return Header.FromString(encoded)
    except DecodeError as error:
        raise FrameError(f"a frame header of {len(encoded)} bytes does not parse: {error}") from error


class FrameReader:
    """Cuts a byte stream into frames, with few copies: large bodies are received in place.

    The caller receives into `space`, reports the count to `advance()`, which returns the first frame, takes further
    ones with `next_frame()` until there is none, and only then receives again.

    Args:
        max_header_bytes: A longer header is refused (FrameError).
        max_body_bytes: A longer body is refused (FrameError).
        staging_bytes: What is held for a connection before anything has come.
    """

    STAGING_BYTES = 256 << 10

    def __init__(
        self,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._opener: Opener | None = None
        self._staging = memoryview(bytearray(staging_bytes))
        self._start = 0  # of what is in the staging buffer and has not been taken
        self._end = 0
        self._unfinished: Frame | None = None  # its body is being received, in place
        self.space = self._staging
        """Where the next bytes belong, once `next_frame` has returned None; never empty then."""

    def admit(self, opener: Opener | None = None) -> None:
        """Takes frames of every allowed size from now on; to be called between two frames.

        Args:
            opener: Opens them; None: they are not sealed.
        """
        self._max_header_bytes, self._max_body_bytes = MAX_HEADER_BYTES, MAX_BODY_BYTES
        self._opener = opener
        kept = self._staging[self._start : self._end]
        if len(self._staging) < self.STAGING_BYTES:
            self._staging = memoryview(bytearray(self.STAGING_BYTES))
            self._staging[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self.space = self._staging[self._end :]

    def advance(self, num_bytes: int) -> Frame | None:
        """Takes note of `num_bytes` new bytes in `space`; returns what `next_frame` does, and raises what it raises."""
        if self._unfinished is None:
            self._end += num_bytes
        else:
            self.space = self.space[num_bytes:]
        return self.next_frame()

    def next_frame(self) -> Frame | None:
        """Returns the next frame, or None if the bytes received so far complete no other one.

        Raises:
            FrameError: Wrong magic or version, a length over its limit, or what was sealed is not what was sent next.
        """
        if self._unfinished is not None:
            return self._finish_body(self._unfinished)
        if self._start == self._end:
            self._start, self._end, self.space = 0, 0, self._staging
            return None
        head_end = self._start + PREFIX.size
        if head_end > self._end:
            self._make_room(PREFIX.size)
            return None
        magic, header_bytes, body_bytes, call_id = PREFIX.unpack_from(self._staging, self._start)
        if magic != MAGIC or header_bytes > self._max_header_bytes or body_bytes > self._max_body_bytes:
            self._refuse(magic, header_bytes, body_bytes)
        opener = self._opener
        if opener is not None:
            header_bytes += TAG_BYTES
        body_start = head_end + header_bytes
        if body_start > self._end:
            self._make_room(PREFIX.size + header_bytes)
            return None
        if opener is None:
            encoded = bytes(self._staging[head_end:body_start])
        else:
            encoded = opener.open_header(self._staging[head_end:body_start], self._staging[self._start : head_end])
        if not body_bytes:
            self._start = body_start
            return Frame(call_id, encoded, EMPTY_BODY)
        if opener is not None:
            body_bytes += TAG_BYTES
        body_end = body_start + body_bytes
        if body_end > self._end:
            self._start_body(call_id, encoded, body_start, body_bytes)
            return None
        self._start = body_end
        if opener is not None:
            return Frame(call_id, encoded, opener.open_body(self._staging[body_start:body_end]))
        # A copy in a bytearray: one allocation, aligned for every dtype.
        return Frame(call_id, encoded, memoryview(bytearray(self._staging[body_start:body_end])))

    def _start_body(self, call_id: int, encoded: bytes, start: int, body_bytes: int) -> None:
        """Copies the part of a body that came with its header; the rest will be received in place."""
        body = np.empty(body_bytes, np.uint8).data
        staged = self._end - start
        body[:staged] = self._staging[start : self._end]
        self._start = self._end = 0
        self._unfinished, self.space = Frame(call_id, encoded, body), body[staged:]

    def _finish_body(self, frame: Frame) -> Frame | None:
        if len(self.space):
            return None
        self._unfinished, self.space = None, self._staging
        return frame if self._opener is None else frame._replace(body=self._opener.open_body(frame.body))

    def _refuse(self, magic: bytes, header_bytes: int, body_bytes: int) -> NoReturn:
        if magic != MAGIC and magic.startswith(FORMAT):
            raise VersionError(
                f"the other side's frames begin with {magic!r}, this process's with {MAGIC!r}: another version of "
                "Manta runs there"
            )
        if magic.startswith(TLS_RECORD):
            raise FrameError(
                "the other side speaks TLS, and this process has no certificates (`tls` in its service file)"
            )
        if magic != MAGIC:
            raise FrameError(f"a frame begins with {magic!r} instead of {MAGIC!r}: it is not Manta's")
        if header_bytes > self._max_header_bytes:
            raise FrameError(f"a frame header of {header_bytes} bytes is over the limit of {self._max_header_bytes}")
        raise FrameError(f"a frame body of {body_bytes} bytes is over the limit of {self._max_body_bytes}")

    def _make_room(self, needed: int) -> None:
        """Finds the space behind an incomplete head of `needed` bytes, moving it to the front if it would not fit."""
        if self._start + needed > len(self._staging):
            kept = bytes(self._staging[self._start : self._end])
            if needed > len(self._staging):
                self._staging = memoryview(bytearray(needed + self.STAGING_BYTES))
            self._staging[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self.space = self._staging[self._end :]
