"""Keyed handshake: each side proves that it knows a key of the service, without sending it.

    client -> server   Hello(nonce=c, role, key_ids)
    server -> client   Hello(nonce=s, key_ids=[the one that it takes], proof=HMAC(key, "server" t))
    client -> server   Hello(proof=HMAC(key, "client" t))

HMAC-SHA256 (RFC 2104) over the transcript t: the format's version, the role, both nonces and, under TLS, the server's
certificate. A label for each direction, so that an answer cannot be reflected.

What a peer may cost that has not proved itself is stated here, for every listener.
"""

import hashlib
import hmac
import secrets
from typing import get_args

from protos.dispatch_pb2 import Header, Hello
from transport.credentials import MAX_KEYS, Credentials, key_id
from transport.errors import HandshakeError
from transport.frames import MAGIC, PREFIX, FrameReader
from transport.membership import Role
from transport.sealing import SealKeys, derive

NONCE_BYTES = 32
ROLES: frozenset[str] = frozenset(get_args(Role))  # who connects to others

# A Hello has 150 bytes at most. Whatever is longer is refused, and nothing larger is held.
MAX_HELLO_BYTES = 512
# The oldest goes when one more comes: an honest peer needs a few milliseconds, and what it connects to may be busy.
MAX_UNPROVEN = 128
PROOF_TIMEOUT_S = 5.0
# So often within that time it is looked at. Looks are counted instead of seconds: while this very process computes
# (an expert actor, for half a minute at worst) it reads nothing, and nobody is late.
PROOF_LOOKS = 4


def handshake_reader() -> FrameReader:
    """Returns a reader that takes, and holds, nothing larger than a handshake message."""
    return FrameReader(MAX_HELLO_BYTES, 0, PREFIX.size + MAX_HELLO_BYTES)


def _transcript(role: str, client_nonce: bytes, server_nonce: bytes, channel: bytes) -> bytes:
    parts = (MAGIC, role.encode(), client_nonce, server_nonce, channel)
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def _proof(key: bytes, label: bytes, transcript: bytes) -> bytes:
    return hmac.digest(key, label + transcript, hashlib.sha256)


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise HandshakeError(f"a handshake nonce has {len(nonce)} bytes instead of {NONCE_BYTES}")


class ClientHandshake:
    """The connecting side. `done` once the server has proved itself and the own proof is on its way.

    Args:
        role: What this side is, one of ROLES.
    """

    def __init__(self, credentials: Credentials, role: Role) -> None:
        self._credentials = credentials
        self._offered = credentials.keys
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._role = role
        self._transcript = b""
        self.key = b""
        """The key that both sides have proved; empty before."""
        self.done = False

    def start(self) -> Header:
        """Returns the first message."""
        key_ids = [key_id(key) for key in self._offered]
        return Header(hello=Hello(nonce=self._nonce, role=self._role, key_ids=key_ids))

    def receive(self, header: Header, channel: bytes = b"") -> Header:
        """Returns the answer to the server's message.

        Args:
            channel: What is known of the channel that it came over (the server's certificate); both ends know the same,
                or each refuses the other.

        Raises:
            HandshakeError: It is no handshake, or the server knows none of the keys.
        """
        if header.WhichOneof("kind") != "hello":
            raise HandshakeError("the server sent a message before the handshake was complete")
        hello = header.hello
        _check_nonce(hello.nonce)
        transcript = _transcript(self._role, self._nonce, hello.nonce, channel)
        # Those offered may have been replaced meanwhile.
        taken = [key for key in self._offered if key_id(key) in hello.key_ids and self._credentials.accepts(key)]
        if len(taken) != 1 or not hmac.compare_digest(hello.proof, _proof(taken[0], b"server", transcript)):
            raise HandshakeError("the server does not know a key of this service: is it another service's process?")
        (self.key,) = taken
        self._transcript = transcript
        self.done = True
        return Header(hello=Hello(proof=_proof(self.key, b"client", transcript)))

    def seal_keys(self) -> SealKeys:
        """Returns the keys to seal this connection's frames with, once it is `done`."""
        return derive(self.key, self._transcript)


class ServerHandshake:
    """The accepting side. `done` once the client has proved itself.

    Args:
        channel: What is known of the channel that carries it (the own certificate).
    """

    def __init__(self, credentials: Credentials, channel: bytes = b"") -> None:
        self._credentials = credentials
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._channel = channel
        self._transcript = b""
        self.key = b""
        """The key that is being proved; empty before the first message."""
        self.role = ""
        """What the client is: one of ROLES, as it has proved once this is `done`; empty before the first message."""
        self.done = False

    def receive(self, header: Header) -> Header | None:
        """Returns the answer to a client's message, or None when the handshake is complete.

        Raises:
            HandshakeError: The message is not a handshake, or the client does not know a key of the service.
        """
        if header.WhichOneof("kind") != "hello":
            raise HandshakeError("a message came before the handshake was complete")
        return self._challenge(header.hello) if not self._transcript else self._finish(header.hello)

    def _challenge(self, hello: Hello) -> Header:
        _check_nonce(hello.nonce)
        if hello.role not in ROLES:
            raise HandshakeError(f"a client calls itself {hello.role!r}; allowed: {', '.join(sorted(ROLES))}")
        if len(hello.key_ids) > MAX_KEYS:
            raise HandshakeError(f"a client offers {len(hello.key_ids)} keys; allowed: {MAX_KEYS}")
        key = self._credentials.find(hello.key_ids)
        if key is None:
            raise HandshakeError("a client does not know a key of this service")
        self.key, self.role = key, hello.role
        self._transcript = _transcript(hello.role, hello.nonce, self._nonce, self._channel)
        proof = _proof(key, b"server", self._transcript)
        return Header(hello=Hello(nonce=self._nonce, proof=proof, key_ids=[key_id(key)]))

    def _finish(self, hello: Hello) -> None:
        proof = _proof(self.key, b"client", self._transcript)
        if not hmac.compare_digest(hello.proof, proof) or not self._credentials.accepts(self.key):
            raise HandshakeError("a client does not know a key of this service")
        self.done = True

    def seal_keys(self) -> SealKeys:
        """Returns the keys to seal this connection's frames with, once it is `done`."""
        return derive(self.key, self._transcript)
