"""The service that is disturbed: one started for it, on a Ray of its own, or one that runs already."""

import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from ray._private import worker as ray_worker

from benchmarks.client import Server, connect
from benchmarks.faults.census import counts, serving
from benchmarks.faults.kill import Observed
from cluster.lifecycle import OnProgress, serve, status
from cluster.ray_session import open_session
from cluster.spec import ServiceSpec, spec_from_dict

NAME = "faults"
# CPUs that Ray sets aside for each actor: next to none, so that several replicas fit on a small host.
CPU_SHARE = 0.02


class ServiceError(Exception):
    """There is no service to disturb; the message says why."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long a request may be silent, a recovery may take, and a stopped process is left alone."""

    request_s: float
    recovery_s: float
    hang_s: float


@dataclass(frozen=True, slots=True)
class Target:
    """A service that answers at `server` and can be watched; `spec` is its file, where it was started here."""

    server: Server
    observed: Observed
    spec: ServiceSpec | None = None


def spec_of(
    model: str, replicas: Mapping[str, int], port: int, overrides: Mapping[str, object] | None = None
) -> ServiceSpec:
    """A float32 service with so many `experts` (of each shard), `routers`, `nodes` and `gateways`.

    Args:
        overrides: Other fields, by dotted path.

    Raises:
        SpecError: There cannot be one.
    """
    data = {
        "name": NAME,
        "model": {"path": model, "dtype": "float32"},
        "api": {"port": port, "replicas": replicas["gateways"]},
        "router": {"replicas": replicas["routers"]},
        "attention": {"replicas": replicas["nodes"], "num_cpus": CPU_SHARE},
        "experts": {"replicas": replicas["experts"], "num_cpus": CPU_SHARE},
    }
    return spec_from_dict(data, overrides, base=Path.cwd())


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(spec: ServiceSpec, limits: TimeLimits, on_progress: OnProgress) -> Generator[Target]:
    """A service of this benchmark's own, stopped at the end.

    Raises:
        ServiceError: It does not start.
    """
    try:
        running = serve(spec, None, on_progress)
    except (ValueError, RuntimeError, ConnectionError) as error:
        raise ServiceError(str(error)) from error
    with running, _quiet_ray():
        yield Target(connect(running.url, None, limits.request_s), observe(spec.name, limits), spec)


@contextmanager
def attached(name: str, url: str, limits: TimeLimits) -> Generator[Target]:
    """A service that runs on this host's Ray already, and goes on afterwards.

    Raises:
        ServiceError: There is none.
        ServerError: Nothing answers at `url`.
    """
    try:
        session = open_session("auto")
    except ConnectionError as error:
        raise ServiceError(f"no Ray runs on this host ({error}); leave --attach out to start a service") from error
    except ValueError as error:  # one that lets strangers in, or asks for another token
        raise ServiceError(str(error)) from error
    try:
        with _quiet_ray():
            yield Target(connect(url, None, limits.request_s), observe(name, limits))
    finally:
        session.close()


@contextmanager
def _quiet_ray() -> Generator[None]:
    """Keeps Ray from printing a paragraph, into the report, on each process that dies; its debugger does it so too."""
    ray_worker._worker_logs_enabled = False  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        ray_worker._worker_logs_enabled = True  # pyright: ignore[reportPrivateUsage]


def observe(name: str, limits: TimeLimits) -> Observed:
    """A service that is whole at this moment, on the Ray that this process has joined.

    Raises:
        ServiceError: There is none of that name, or its controller does not answer.
    """
    ask = partial(status, name, "auto")
    try:
        whole = counts(serving(ask()))
    except (ValueError, RuntimeError) as error:
        raise ServiceError(str(error)) from error
    host = ray.get_runtime_context().get_node_id()
    return Observed(ask, whole, host, limits.recovery_s, limits.hang_s)
