"""Frames between hosts, sealed: AES-256-GCM under keys that only the two ends of one connection can derive.

What is sealed is secret, and nothing in it can be changed, repeated, left out or put in another order: each header and
each body has the next number of its direction as its nonce. The prefix stays readable, and is authenticated together
with the header, before anything is allocated for the body. A connection that is cut short ends like any that is lost:
half a frame counts for nothing, and whoever waits for an answer asks again.

Why not TLS without certificates: docs/decisions/015-between-hosts.md.
"""

from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from transport.errors import FrameError

KEY_BYTES = 32
TAG_BYTES = 16
NONCE_BYTES = 12

Bytes = bytes | memoryview


class SealKeys(NamedTuple):
    """The two keys of one connection, one for each direction."""

    to_server: bytes
    to_client: bytes


def derive(key: bytes, transcript: bytes) -> SealKeys:
    """Returns the keys of a connection (HKDF, RFC 5869).

    Args:
        key: The service's.
        transcript: Everything that the two ends have agreed on, both nonces in it.
    """
    info = b"manta data plane seal"
    both = HKDF(SHA256(), 2 * KEY_BYTES, salt=transcript, info=info).derive(key)
    return SealKeys(both[:KEY_BYTES], both[KEY_BYTES:])


class _Numbered:
    """A cipher and the number of what comes next."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def _nonce(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(NONCE_BYTES, "little")


class Sealer(_Numbered):
    """Seals what one direction of a connection sends, in the order in which it is sent."""

    def seal_header(self, encoded: bytes, prefix: bytes) -> bytes:
        """Returns a sealed header, TAG_BYTES longer; it opens only together with its prefix."""
        return self._cipher.encrypt(self._nonce(), encoded, prefix)

    def seal_body(self, body: memoryview) -> memoryview:
        """Returns a sealed body, TAG_BYTES longer."""
        sealed = np.empty(len(body) + TAG_BYTES, np.uint8).data
        plain = np.frombuffer(body, np.uint8).data  # rows come as bytes of ctypes, which the cipher does not know
        self._cipher.encrypt_into(self._nonce(), plain, None, sealed)
        return sealed


class Opener(_Numbered):
    """Opens what a `Sealer` with the same key has sealed, in the same order."""

    def open_header(self, sealed: Bytes, prefix: Bytes) -> bytes:
        """Returns the header.

        Raises:
            FrameError: It, or its prefix, is not what was sent next.
        """
        try:
            return self._cipher.decrypt(self._nonce(), sealed, prefix)
        except InvalidTag:
            raise _changed("header") from None

    def open_body(self, sealed: memoryview) -> memoryview:
        """Returns the body, writable and aligned for every dtype.

        Raises:
            FrameError: It is not what was sent next.
        """
        body = np.empty(len(sealed) - TAG_BYTES, np.uint8).data
        try:
            self._cipher.decrypt_into(self._nonce(), sealed, None, body)
        except InvalidTag:
            raise _changed("body") from None
        return body


def _changed(what: str) -> FrameError:
    return FrameError(f"a frame's {what} was changed on its way, or is not the one that was sent next")
