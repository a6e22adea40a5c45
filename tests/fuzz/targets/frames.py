"""A byte stream is cut into the same frames however it arrives, or refused by FrameError."""

from tests.fuzz.material import Material
from transport.errors import FrameError
from transport.frames import MAGIC, FrameReader

WORDS = (MAGIC,)
LIMITS = (4096, 1 << 16)  # of a header and a body


def one(data: bytes) -> None:
    material = Material(data)
    sizes = [1 + material.number(256) for _ in range(3)]
    stream = material.rest()
    cut, whole = _read(stream, sizes), _read(stream, [max(1, len(stream))])
    assert cut == whole, f"cut at {sizes}: {cut} instead of {whole}"


def _read(stream: bytes, sizes: list[int]) -> list[object]:
    """What comes out: frames, then perhaps the error that ends it."""
    reader = FrameReader(*LIMITS)
    found: list[object] = []
    start = turn = 0
    try:
        while start < len(stream):
            count = min(sizes[turn % len(sizes)], len(stream) - start, len(reader.space))
            assert count > 0, "there is always space for the next byte"
            reader.space[:count] = stream[start : start + count]
            frame = reader.advance(count)
            start, turn = start + count, turn + 1
            while frame is not None:
                found.append((frame.call_id, _kind(frame), bytes(frame.body)))
                frame = reader.next_frame()
    except FrameError as error:
        found.append(str(error))
    return found


def _kind(frame) -> object:
    try:
        return frame.header.WhichOneof("kind")
    except FrameError:
        return "unreadable"
