"""The data-plane keys of a service: random, kept in Ray's internal store; never in files, logs, status or events.

One, but while it is being changed for another (`cluster.key_rotation`).
"""

import json
import secrets
from dataclasses import dataclass, field

from ray.experimental.internal_kv import (  # pyright: ignore[reportMissingTypeStubs]
    _internal_kv_del,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_get,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_put,  # pyright: ignore[reportPrivateUsage]
)

from cluster.names import NAMESPACE, key_name
from cluster.plain import SAID, pack, unpack

KEY_BYTES = 32


@dataclass(frozen=True)
class DataPlaneKeys:
    """What processes of a service prove themselves with.

    Args:
        keys: In hexadecimal digits, the best first.
        generation: Grows with each step of a change.
        stage: 0: no change is under way; 1: the next key is accepted too; 2: it is used, and the old one accepted.
    """

    keys: tuple[str, ...] = field(repr=False)
    generation: int = 0
    stage: int = 0

    @property
    def as_bytes(self) -> tuple[bytes, ...]:
        return tuple(map(bytes.fromhex, self.keys))


def new_keys() -> DataPlaneKeys:
    """Returns the keys of a service that begins."""
    return DataPlaneKeys((secrets.token_hex(KEY_BYTES),))


def next_step(now: DataPlaneKeys) -> DataPlaneKeys:
    """Returns the next step of a change: (old) → (old, new) → (new, old) → (new).

    In whatever order processes hear of one step, each two have a key in common, if all have heard of the step before.
    """
    old, *_ = now.keys
    steps = {0: (old, secrets.token_hex(KEY_BYTES)), 1: (*now.keys[1:], old), 2: (old,)}
    return DataPlaneKeys(steps[now.stage], now.generation + 1, (now.stage + 1) % 3)


def data_plane_keys(service: str) -> DataPlaneKeys:
    """Returns the service's keys; the first process that asks makes them.

    Raises:
        FormatError: They are of a Manta whose words are not understood here.
    """
    _internal_kv_put(key_name(service), _encoded(new_keys()), overwrite=False, namespace=NAMESPACE.encode())
    keys = stored_data_plane_keys(service)
    assert keys is not None
    return keys


def stored_data_plane_keys(service: str) -> DataPlaneKeys | None:
    """Returns the service's keys; None: nobody has asked for them yet.

    Raises:
        FormatError: They are of a Manta whose words are not understood here.
    """
    data = _internal_kv_get(key_name(service), namespace=NAMESPACE.encode()) or b""
    if not data:
        return None
    if len(data) == KEY_BYTES:  # as it was before keys could be changed: the key itself
        return DataPlaneKeys((data.hex(),))
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # the first of decoding, too: it is none of ours
        record = None
    return unpack(DataPlaneKeys, record, f"the data-plane keys of {service}", True, SAID)


def store_data_plane_keys(service: str, keys: DataPlaneKeys) -> None:
    """Keeps the keys of a step, for those that begin from now on."""
    _internal_kv_put(key_name(service), _encoded(keys), overwrite=True, namespace=NAMESPACE.encode())


def forget_data_plane_key(service: str) -> None:
    """Removes a service's keys; its next start makes a new one."""
    _internal_kv_del(key_name(service), namespace=NAMESPACE.encode())


def _encoded(keys: DataPlaneKeys) -> bytes:
    return json.dumps(pack(keys, SAID)).encode()
