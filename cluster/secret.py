"""The data-plane key of a service: random, made once, kept in Ray's internal store; never in files or logs."""

import secrets

from ray.experimental.internal_kv import (  # pyright: ignore[reportMissingTypeStubs]
    _internal_kv_del,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_get,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_put,  # pyright: ignore[reportPrivateUsage]
)

from cluster.names import NAMESPACE, key_name

KEY_BYTES = 32


def data_plane_key(service: str) -> bytes:
    """Returns the service's key; the first process that asks makes it."""
    name, namespace = key_name(service), NAMESPACE.encode()
    _internal_kv_put(name, secrets.token_bytes(KEY_BYTES), overwrite=False, namespace=namespace)
    key = _internal_kv_get(name, namespace=namespace)
    assert key is not None
    return key


def forget_data_plane_key(service: str) -> None:
    """Removes a service's key; its next start makes a new one."""
    _internal_kv_del(key_name(service), namespace=NAMESPACE.encode())
