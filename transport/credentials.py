"""What a process proves itself with on the data plane: keys, which can be changed while it runs, and certificates."""

import hashlib
import hmac
import threading
from collections.abc import Callable, Sequence

from transport.tls import Tls

MIN_KEY_BYTES = 16
MAX_KEYS = 4  # at once: the present one, the one before it and the next one are enough for a change
KEY_ID_BYTES = 8


def key_id(key: bytes) -> bytes:
    """Returns what names a key to a peer, and tells nothing of it to whoever does not know it."""
    return hmac.digest(key, b"manta data plane key id", hashlib.sha256)[:KEY_ID_BYTES]


class Credentials:
    """The keys of one service, shared by every link and session of a process. Callable from any thread.

    A link offers all of its keys, best first, and the other side takes the first that it has too: two processes
    understand each other for as long as they have one key in common. To change the key of a running service, give every
    process (old, new), then (new, old), then (new): in whatever order they hear of each step, nothing is refused.

    Args:
        keys: The service's keys, each at least MIN_KEY_BYTES long, MAX_KEYS at most; the best first.
        tls: For connections between hosts; None: frames are sealed instead.
    """

    def __init__(self, *keys: bytes, tls: Tls | None = None) -> None:
        self.tls = tls
        self._lock = threading.Lock()
        self._on_change: list[Callable[[], None]] = []
        self._keys = _checked(keys)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys, best first."""
        return self._keys

    def accepts(self, key: bytes) -> bool:
        """Whether a key is one of the service's at present."""
        return any(hmac.compare_digest(key, known) for known in self._keys)

    def find(self, offered: Sequence[bytes]) -> bytes | None:
        """Returns the first key that one of the offered ids names, or None."""
        known = {key_id(key): key for key in self._keys}
        return next((known[name] for name in offered if name in known), None)

    def replace(self, keys: Sequence[bytes]) -> None:
        """Takes other keys from now on. Connections that were made with a key which is gone end, and are made anew.

        Raises:
            ValueError: There are none, too many, or one is too short; the old ones stay.
        """
        checked = _checked(keys)
        with self._lock:
            changed, self._keys = checked != self._keys, checked
            told = list(self._on_change) if changed else []
        for callback in told:
            callback()

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` after each change, in the thread that made it. Returns what ends that."""
        with self._lock:
            self._on_change.append(callback)
        return lambda: self._forget(callback)

    def _forget(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if callback in self._on_change:
                self._on_change.remove(callback)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._keys)} keys)"  # never the keys: this ends up in logs


def _checked(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ValueError(f"{len(keys)} data-plane keys were given; allowed: 1 to {MAX_KEYS}")
    shortest = min(map(len, keys))
    if shortest < MIN_KEY_BYTES:
        raise ValueError(f"a data-plane key has {shortest} bytes; needed: {MIN_KEY_BYTES} at least")
    return tuple(keys)
