"""Starts, shows and stops a service; what the `manta` command calls."""

import asyncio
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from cluster.controller import start_controller
from cluster.ingress import check_port_free
from cluster.keeper import release_group
from cluster.names import NAMESPACE, controller_name
from cluster.ray_session import join_ray, joined, start_local_ray
from cluster.resolve import Service, resolve
from cluster.secret import forget_data_plane_key
from cluster.spec import ServiceSpec

POLL_S = 0.1
CONTROL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a start has come: a stage in words, and how much of it is done (`total` 0: nothing to count)."""

    stage: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


class RunningService:
    """A service that answers. As a context, it stops the service (and the Ray it started) at the end."""

    def __init__(self, service: Service, url: str, own_ray: bool) -> None:
        self._service = service
        self._own_ray = own_ray
        self._stopped = threading.Event()
        self.url = url

    def wait(self) -> None:
        """Blocks until Ctrl-C, or until the service is gone.

        Raises:
            RuntimeError: The service has ended by itself (`manta down`, or its controller gave up).
        """
        while not self._stopped.wait(2.0):
            if not _runs(self._service.name):
                raise RuntimeError(f"service {self._service.name} is gone: it was stopped from elsewhere")

    def stop(self) -> None:
        """Stops this service, and nothing else on the cluster."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        try:
            _stop(self._service.name)
        finally:
            if self._own_ray:
                ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(spec: ServiceSpec, address: str | None, on_progress: OnProgress) -> RunningService:
    """Starts a service and returns once it answers.

    Args:
        address: A Ray cluster to use; None starts one on this machine.

    Raises:
        ValueError: The model cannot be served, or the port is taken.
        RuntimeError: A part did not come up; says which, and why.
    """
    own_ray = address is None
    service = resolve(spec, loopback=own_ray)
    if own_ray:
        check_port_free(spec.api.host, spec.api.port)
        on_progress(Progress("starting Ray"))
        start_local_ray()
    else:
        on_progress(Progress("joining Ray"))
        join_ray(address)
    running = RunningService(service, _url(spec), own_ray)
    try:
        _start(service, on_progress)
        _wait_healthy(running.url, spec, on_progress)
    except BaseException:
        running.stop()
        raise
    return running


def _url(spec: ServiceSpec) -> str:
    host = "127.0.0.1" if spec.api.host in ("0.0.0.0", "::") else spec.api.host  # noqa: S104 - compared, not bound
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{spec.api.port}{spec.api.route_prefix.rstrip('/')}"


def _start(service: Service, on_progress: OnProgress) -> None:
    """Starts experts and Serve parts side by side, and waits for both."""
    controller = start_controller(service)
    running_version = ray.get(controller.spec_version.remote(), timeout=CONTROL_TIMEOUT_S)
    if running_version != service.version:
        raise ValueError(
            f"a service called {service.name} runs already, from another file; stop it with `manta down {service.name}`, "
            "or give this one another name"
        )
    application = _ApplicationStart(service)
    application.thread.start()
    while application.thread.is_alive() or not _experts_serve(controller, on_progress):
        if application.error is not None:
            break
        time.sleep(POLL_S)
    if application.error is not None:
        raise RuntimeError(f"the Serve application did not start: {application.error}") from application.error


class _ApplicationStart:
    """`serve.run` in a thread of its own: it returns only once every replica runs."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="manta-serve-run", daemon=True)

    def _run(self) -> None:
        try:
            # Imported here, beside the experts' start: they bring torch, which takes seconds.
            from ray import serve as ray_serve

            from cluster.ingress import start_serve

            start_serve(self._service.spec)
            from cluster.app import build_service

            application = build_service(self._service)
            ray_serve.run(application, name=self._service.name, route_prefix=self._service.spec.api.route_prefix)
        except Exception as error:
            self.error = error


def _experts_serve(controller: Any, on_progress: OnProgress) -> bool:
    """Reports how many expert replicas serve; true once all do.

    Raises:
        RuntimeError: One failed to load; says why.
    """
    status = ray.get(controller.status.remote(), timeout=CONTROL_TIMEOUT_S)
    failures = [event["text"] for event in status["events"] if event["failed"]]
    if failures:
        raise RuntimeError(failures[0])
    replicas = [replica for shard in status["experts"] for replica in shard["replicas"]]
    serving = sum(replica["state"] == "serving" for replica in replicas)
    on_progress(Progress("loading the experts", serving, len(replicas)))
    return bool(replicas) and serving == len(replicas)


def _wait_healthy(url: str, spec: ServiceSpec, on_progress: OnProgress) -> None:
    """Waits until /health says 200: a gateway has a node, which has a router, which has every expert.

    Raises:
        RuntimeError: Not within `limits.load_timeout_s`.
    """
    on_progress(Progress("connecting the parts"))
    deadline_s = time.monotonic() + spec.limits.load_timeout_s
    last = "no answer"
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5.0):  # noqa: S310 - our own URL
                return
        except urllib.error.HTTPError as error:
            last = f"status {error.code}"
        except OSError as error:
            last = str(error)
        time.sleep(POLL_S)
    raise RuntimeError(f"{url}/health is not 200 after {spec.limits.load_timeout_s:g} s (limits.load_timeout_s): {last}")


def status(name: str | None, address: str | None) -> dict[str, Any]:
    """Returns what runs, where and how loaded, as plain data.

    Raises:
        ValueError: There is no such service, or there are several and none was named.
        ConnectionError: There is no Ray cluster.
    """
    with joined(address):
        controller = ray.get_actor(controller_name(_find(name)), NAMESPACE)
        return ray.get(controller.status.remote(), timeout=CONTROL_TIMEOUT_S)


def down(name: str | None, address: str | None) -> None:
    """Stops one service, and nothing else.

    Raises:
        ValueError: There is no such service, or there are several and none was named.
        ConnectionError: There is no Ray cluster.
    """
    with joined(address):
        _stop(_find(name))


def _find(name: str | None) -> str:
    actors: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)  # pyright: ignore[reportAssignmentType]
    suffix = controller_name("")
    services = sorted(
        actor["name"].removesuffix(suffix)
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].endswith(suffix)
    )
    if name is None and len(services) == 1:
        return services[0]
    if name in services:
        return name
    running = ", ".join(services) or "none"
    asked = f"{name} was given" if name else "no service was named"
    raise ValueError(f"{asked}; services on this cluster: {running}")


def _runs(name: str) -> bool:
    try:
        ray.get_actor(controller_name(name), NAMESPACE)
    except ValueError:
        return False
    return True


def _stop(name: str) -> None:
    """Ends the Serve application, the experts and the controller of one service."""
    from ray import serve as ray_serve

    try:
        if name in ray_serve.status().applications:
            ray_serve.delete(name)
    finally:
        _stop_controller(name)
        release_group(name)
        forget_data_plane_key(name)


def _stop_controller(name: str) -> None:
    try:
        controller = ray.get_actor(controller_name(name), NAMESPACE)
    except ValueError:
        return
    try:
        ray.get(controller.stop.remote(), timeout=CONTROL_TIMEOUT_S)
    except (RayError, asyncio.CancelledError, TimeoutError):
        ray.kill(controller, no_restart=True)
