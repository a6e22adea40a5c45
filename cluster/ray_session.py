"""Joins a Ray cluster, or starts one on this machine that ends with this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.names import NAMESPACE

OBJECT_STORE_BYTES = 150 << 20  # Manta keeps no data in Ray's object store

# Of a Ray that Manta starts itself; read by every Ray process as it starts.
LOCAL_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default, 15, lets anything else on the machine go first
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # weights in huge pages: read 7 % faster (docs/performance.md)
    "USE_TORCH": "0",  # for transformers in a gateway, which needs no torch; nothing else reads it
    # Serve's own settings for throughput (RAY_SERVE_THROUGHPUT_OPTIMIZED), but for direct ingress, which would move
    # the gateways to other ports: fewer threads between proxy and gateway, and no log line for each request.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


def start_local_ray() -> None:
    """Starts Ray on this machine, on loopback only; it ends with this process.

    Raises:
        RuntimeError: Ray does not start.
    """
    os.environ.update(LOCAL_ENVIRONMENT)
    ray.init(
        address="local",
        namespace=NAMESPACE,
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
    )


def join_ray(address: str | None) -> None:
    """Joins a running cluster.

    Args:
        address: As for `ray.init`; None looks for one on this machine.

    Raises:
        ConnectionError: There is none.
    """
    if not ray.is_initialized():
        ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False)


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """A cluster joined for as long as the context lasts (unless this process had joined it already)."""
    before = ray.is_initialized()
    join_ray(address)
    try:
        yield
    finally:
        if not before:
            ray.shutdown()
