"""FrameReader: whatever is sent comes out equal, however the stream is cut; whatever is not a frame is refused."""

import itertools

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from protos.dispatch_pb2 import Header, Hello
from transport.errors import FrameError
from transport.frames import MAGIC, PREFIX, Frame, FrameReader, encode_head

STAGING = FrameReader.STAGING_BYTES
SIZES = st.one_of(st.integers(0, 100), st.sampled_from([STAGING - 70, STAGING - 17, STAGING, STAGING + 1, 3 * STAGING]))


def make_frame(call_id: int, header_bytes: int, body_bytes: int) -> bytes:
    """A frame whose header has about `header_bytes` bytes, and whose body counts up."""
    header = Header(hello=Hello(role="r" * header_bytes))
    body = bytes(itertools.islice(itertools.cycle(range(256)), body_bytes))
    return encode_head(header, body_bytes, call_id) + body


def feed(reader: FrameReader, stream: bytes, cuts: list[int]) -> list[Frame]:
    """Gives the stream to the reader in pieces that end at `cuts`, and smaller ones where it has less space."""
    frames: list[Frame] = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), len(stream)]):
        while start < stop:
            count = min(stop - start, len(reader.space))
            assert count > 0, "there is always space for the next byte"
            reader.space[:count] = stream[start : start + count]
            frame = reader.advance(count)
            start += count
            while frame is not None:
                frames.append(frame)
                frame = reader.next_frame()
    return frames


def encode(frame: Frame) -> bytes:
    return encode_head(frame.header, len(frame.body), frame.call_id) + bytes(frame.body)


@given(st.data())
def test_frames_come_out_equal_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=5))
    sent = [make_frame(number, *size) for number, size in enumerate(sizes)]
    stream = b"".join(sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert [encode(frame) for frame in feed(FrameReader(), stream, cuts)] == sent


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6))
def test_single_bytes_are_enough(sizes: list[tuple[int, int]]) -> None:
    sent = [make_frame(number, *size) for number, size in enumerate(sizes)]
    stream = b"".join(sent)
    assert [encode(frame) for frame in feed(FrameReader(), stream, list(range(len(stream))))] == sent


def test_bodies_do_not_share_memory() -> None:
    frames = feed(FrameReader(), make_frame(1, 4, 64) + make_frame(2, 4, 64), [])
    before = bytes(frames[1].body)
    frames[0].body[:] = bytes(64)
    assert bytes(frames[1].body) == before


def test_a_header_larger_than_the_staging_buffer() -> None:
    sent = [make_frame(1, 5, 9), make_frame(2, 2 * STAGING, 33), make_frame(3, 6, 7)]
    assert [encode(frame) for frame in feed(FrameReader(), b"".join(sent), [7])] == sent


@given(st.binary(min_size=PREFIX.size, max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    if garbage.startswith(MAGIC):
        garbage = b"X" + garbage[1:]
    with pytest.raises(FrameError, match="instead of"):
        feed(FrameReader(), garbage, [])


@st.composite
def near_frames(draw: st.DrawFn) -> bytes:
    """Prefixes with lengths that are small, each followed by any bytes, often as many as it says."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 4))):
        header_bytes, body_bytes = draw(st.integers(0, 12)), draw(st.integers(0, 30))
        size = draw(st.just(header_bytes + body_bytes) | st.integers(0, 50))
        parts.append(PREFIX.pack(MAGIC, header_bytes, body_bytes, 0) + draw(st.binary(min_size=size, max_size=size)))
    return b"".join(parts)


@given(st.binary(max_size=300).map(lambda garbage: MAGIC + garbage) | near_frames())
def test_any_bytes_after_the_magic_give_frames_or_an_error(stream: bytes) -> None:
    try:
        frames = feed(FrameReader(), stream, [])
    except FrameError:
        event("refused")
        return
    event(f"{len(frames)} frames")
    end = 0
    for frame in frames:
        _, header_bytes, body_bytes, call_id = PREFIX.unpack_from(stream, end)
        body_start = end + PREFIX.size + header_bytes
        end = body_start + body_bytes
        assert bytes(frame.body) == stream[body_start:end]
        assert frame.encoded == stream[body_start - header_bytes : body_start]
        assert frame.call_id == call_id
    if len(stream) - end >= PREFIX.size:
        assert PREFIX.size + sum(PREFIX.unpack_from(stream, end)[1:3]) > len(stream) - end, "the rest is no whole frame"


def test_another_version_is_refused() -> None:
    with pytest.raises(FrameError, match="another version"):
        feed(FrameReader(), b"MNT1" + make_frame(1, 0, 0)[4:], [])


@pytest.mark.parametrize(
    ("header_bytes", "body_bytes", "what"), [(101, 0, "header of 101 bytes"), (0, 1001, "body of 1001 bytes")]
)
def test_over_long_parts_are_refused_by_their_prefix_alone(header_bytes: int, body_bytes: int, what: str) -> None:
    with pytest.raises(FrameError, match=f"{what} is over the limit of"):
        feed(FrameReader(100, 1000), PREFIX.pack(MAGIC, header_bytes, body_bytes, 0), [])


def test_parts_as_long_as_the_limits_are_taken() -> None:
    stream = make_frame(1, 90, 1000)
    limit = len(stream) - 1000 - PREFIX.size
    assert len(feed(FrameReader(limit, 1000), stream, [])) == 1


def test_limits_are_raised_between_two_frames_that_came_together() -> None:
    reader = FrameReader(100, 0)
    stream = make_frame(1, 3, 0) + make_frame(2, 3, 500)
    reader.space[: len(stream)] = stream
    assert reader.advance(len(stream)) is not None
    reader.admit()
    second = reader.next_frame()
    assert second is not None
    assert len(second.body) == 500


def test_a_header_that_does_not_parse_is_refused() -> None:
    (frame,) = feed(FrameReader(), PREFIX.pack(MAGIC, 4, 0, 0) + b"\xff\xff\xff\xff", [])
    with pytest.raises(FrameError, match="does not parse"):
        _ = frame.header
