"""Keyed handshake: each side proves that it knows the service's key, without sending it.

    client -> server   Hello(nonce=c, role)
    server -> client   Hello(nonce=s, proof=HMAC(key, "server" c s))
    client -> server   Hello(proof=HMAC(key, "client" c s))

HMAC-SHA256 (RFC 2104) over both nonces, with a label per direction so that an answer cannot be reflected.
"""

import hashlib
import hmac
import secrets

from protos.dispatch_pb2 import Header, Hello
from transport.errors import HandshakeError
from transport.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES, FrameReader

NONCE_BYTES = 32

# A peer that has not proved itself cannot make this process hold more than this.
MAX_HELLO_BYTES = 4096


def handshake_reader() -> FrameReader:
    """Returns a reader that takes nothing larger than a handshake message."""
    return FrameReader(MAX_HELLO_BYTES, 0)


def allow_all_sizes(reader: FrameReader) -> None:
    """Raises the limits to what an authenticated peer may send."""
    reader.max_header_bytes, reader.max_body_bytes = MAX_HEADER_BYTES, MAX_BODY_BYTES


def _proof(key: bytes, label: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.new(key, label + client_nonce + server_nonce, hashlib.sha256).digest()


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise HandshakeError(f"a handshake nonce has {len(nonce)} bytes instead of {NONCE_BYTES}")


class ClientHandshake:
    """The connecting side. `done` once the server has proved itself and the own proof is on its way."""

    def __init__(self, key: bytes, role: str) -> None:
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._role = role
        self.done = False

    def start(self) -> Header:
        """Returns the first message."""
        return Header(hello=Hello(nonce=self._nonce, role=self._role))

    def receive(self, header: Header) -> Header:
        """Returns the answer to the server's message.

        Raises:
            HandshakeError: The server does not know the key.
        """
        hello = header.hello
        _check_nonce(hello.nonce)
        if not hmac.compare_digest(hello.proof, _proof(self._key, b"server", self._nonce, hello.nonce)):
            raise HandshakeError("the server does not know this service's key: is it another service's process?")
        self.done = True
        return Header(hello=Hello(proof=_proof(self._key, b"client", self._nonce, hello.nonce)))


class ServerHandshake:
    """The accepting side. `done` once the client has proved itself; `role` is what it says it is."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._client_nonce = b""
        self.role = ""
        self.done = False

    def receive(self, header: Header) -> Header | None:
        """Returns the answer to a client's message, or None when the handshake is complete.

        Raises:
            HandshakeError: The message is not a handshake, or the client does not know the key.
        """
        if header.WhichOneof("kind") != "hello":
            raise HandshakeError("a message came before the handshake was complete")
        if not self._client_nonce:
            _check_nonce(header.hello.nonce)
            self._client_nonce, self.role = header.hello.nonce, header.hello.role
            proof = _proof(self._key, b"server", self._client_nonce, self._nonce)
            return Header(hello=Hello(nonce=self._nonce, proof=proof))
        if not hmac.compare_digest(header.hello.proof, _proof(self._key, b"client", self._client_nonce, self._nonce)):
            raise HandshakeError("a client does not know this service's key")
        self.done = True
        return None
