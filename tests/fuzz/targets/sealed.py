"""Of a sealed stream that was changed on its way, only what comes before the change is taken."""

from protos.dispatch_pb2 import Header, Hello
from tests.fuzz.material import Material
from transport.errors import FrameError
from transport.frames import PREFIX, FrameReader, encode_head
from transport.sealing import Opener, Sealer

KEY = bytes(range(32))


def _sealed() -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Three frames, sealed; and what they say."""
    sealer, streams, said = Sealer(KEY), [], []
    for number in range(3):
        body = bytes([number]) * (40 * number)
        head = encode_head(Header(hello=Hello(role=f"r{number}")), len(body), number)
        prefix, encoded = head[: PREFIX.size], head[PREFIX.size :]
        stream = prefix + sealer.seal_header(encoded, prefix)
        streams.append(stream + (bytes(sealer.seal_body(memoryview(bytearray(body)))) if body else b""))
        said.append((encoded, body))
    return streams, said


STREAMS, SAID = _sealed()


def one(data: bytes) -> None:
    material = Material(data)
    frames = list[bytes](STREAMS)
    change, which, at = material.number(5), material.number(3), material.number(256)
    if change == 0:
        flipped = bytearray(frames[which])
        flipped[at % len(flipped)] ^= 1 << material.number(8)
        frames[which] = bytes(flipped)
    elif change == 1:
        frames[which] = frames[which][: at % len(frames[which])]
    elif change == 2:
        frames.insert(which, material.rest() or b"\0")
    elif change == 3:
        frames.insert(which, frames[at % 3])
    else:
        frames[which], frames[at % 3] = frames[at % 3], frames[which]
    got = _read(b"".join(frames))
    assert got == SAID[: len(got)], f"{got} was taken"
    unchanged = next((n for n, frame in enumerate(STREAMS) if n >= len(frames) or bytes(frames[n]) != frame), 3)
    assert len(got) == unchanged, f"{len(got)} frames were taken; {unchanged} of them were sent so"


def _read(stream: bytes) -> list[tuple[bytes, bytes]]:
    reader = FrameReader()
    reader.admit(Opener(KEY))
    reader.space[: len(stream)] = stream
    got: list[tuple[bytes, bytes]] = []
    try:
        frame = reader.advance(len(stream))
        while frame is not None:
            got.append((bytes(frame.encoded), bytes(frame.body)))
            frame = reader.next_frame()
    except FrameError:
        pass
    return got
