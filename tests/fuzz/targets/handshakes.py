"""Who does not know a key of the service gets through neither side of the handshake, whatever is sent."""

from collections.abc import Iterator

from protos.dispatch_pb2 import Header
from tests.fuzz.material import Material
from transport.credentials import Credentials, key_id
from transport.errors import FrameError, HandshakeError
from transport.frames import MAGIC
from transport.handshake import NONCE_BYTES, ClientHandshake, ServerHandshake, handshake_reader

CREDENTIALS = Credentials(b"a key that the fuzzer does not know", b"and the one before it")
IDS = tuple(key_id(key) for key in CREDENTIALS.keys)  # which it may know: they are sent in the clear
WORDS = (MAGIC, *IDS, b"node", b"router", b"gateway")


def one(data: bytes) -> None:
    material = Material(data)
    handshake = ClientHandshake(CREDENTIALS, "node") if material.flag() else ServerHandshake(CREDENTIALS)
    try:
        for header in _headers(material):
            handshake.receive(header)
            assert not handshake.done, "a peer without the key was let in"
    except (FrameError, HandshakeError):
        assert not handshake.done, "a peer without the key was let in"


def _headers(material: Material) -> Iterator[Header]:
    """Frames as a socket gives them; or headers alone, so that no time is lost on guessing lengths."""
    if material.flag():
        while material.left:
            header = Header()
            header.hello.nonce = material.take(NONCE_BYTES)
            header.hello.proof = material.piece()
            header.hello.role = material.piece().decode(errors="replace")
            header.hello.key_ids.extend(IDS[: material.number(3)])
            header.hello.key_ids.extend(material.piece() for _ in range(material.number(6)))
            yield header
    else:
        reader = handshake_reader()
        stream = material.rest()[: len(reader.space)]
        reader.space[: len(stream)] = stream
        frame = reader.advance(len(stream)) if stream else None
        while frame is not None:
            yield frame.header
            frame = reader.next_frame()
