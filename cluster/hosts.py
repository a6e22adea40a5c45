"""What room the hosts of a Ray cluster have, as the cluster tells."""

import ray
from ray.experimental.internal_kv import (  # pyright: ignore[reportMissingTypeStubs]
    _internal_kv_exists,  # pyright: ignore[reportPrivateUsage]
    _internal_kv_put,  # pyright: ignore[reportPrivateUsage]
)

from cluster.names import NAMESPACE, OWN_RAY
from cluster.room import Room
from transport.cores import available_cores


def mark_own() -> None:
    """Lets everybody who joins this cluster know that Manta has started it."""
    _internal_kv_put(OWN_RAY, b"", overwrite=True, namespace=NAMESPACE.encode())


def num_gpus() -> float:
    """Returns the GPUs of the cluster that this process has joined, taken or free."""
    return ray.cluster_resources().get("GPU", 0.0)


def present_room() -> Room:
    """Returns the room of the cluster that this process has joined; if it has joined none, as if this host were one."""
    if not ray.is_initialized():
        return Room((float(available_cores()),), own=False)
    cpus = [float(host["Resources"].get("CPU", 0.0)) for host in ray.nodes() if host["Alive"]]
    own = bool(_internal_kv_exists(OWN_RAY, namespace=NAMESPACE.encode()))
    return Room(tuple(sorted(cpus, reverse=True)), own)
