"""How HTTP gets in: starts Serve for the spec's host and port, or checks what an existing Serve has instead."""

import errno
import logging
import os
import socket

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray_session import RAY_ENVIRONMENT
from cluster.spec import ServiceSpec

GUARD_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEAD_RESOURCE = "node:__internal_head__"
HEAD_ANSWERS_S = 30.0  # a process is started there to ask

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
ANOTHER_HOST = "give an address of this machine with --host, or 0.0.0.0 for all of them"
PRIVILEGED = "ports below 1024 are for root: choose another"


def check_port_free(host: str, port: int) -> None:
    """Fails early, instead of after a minute of Serve trying.

    Raises:
        ValueError: Something listens there already, or nobody can.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except UnicodeError as error:  # no name has such a part
        raise ValueError(f"api.host: {host} was given, which is no host name; {ANOTHER_HOST}") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = "stop what listens there, or choose another" if error.errno == errno.EADDRINUSE else PRIVILEGED
            where = f"api.port: {port} was given, but {host}:{port}"
            raise ValueError(f"{where} cannot be used ({error.strerror}); {remedy} with --port") from error
        given = f"api.host: {host} was given, and cannot be listened on ({error.strerror})"
        raise ValueError(f"{given}; {ANOTHER_HOST}") from error


def on_head_host() -> bool:
    """Whether this process is on the host where HTTP enters the Ray cluster."""
    head, _, _ = ray.get_runtime_context().gcs_address.rpartition(":")
    return head in (*LOOPBACK, ray.util.get_node_ip_address())


def start_serve(spec: ServiceSpec) -> None:
    """Starts Serve for this spec's host and port, unless it runs there already.

    Raises:
        ValueError: It runs with another host or port, which is one for the whole Ray cluster; or the port is taken.
        TimeoutError: Serve's proxy does not start.
    """
    from ray import serve  # takes a second to import, which a mistyped port need not wait for

    quiet_serve()
    running = serve_listens_at()
    if running is None:
        if on_head_host():
            check_port_free(spec.api.host, spec.api.port)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": spec.api.host, "port": spec.api.port, "request_timeout_s": None},
        )
    elif (_plain(running[0]), running[1]) != (_plain(spec.api.host), spec.api.port):
        host, port = running
        raise ValueError(
            f"api.host and api.port: {spec.api.host}:{spec.api.port} was given, but Serve runs on this Ray cluster "
            f"already and listens on {host}:{port}; one host and port serve a whole cluster. Give --host {host} "
            f"--port {port} (and another api.route_prefix than its other applications), or use another cluster"
        )


def unguarded_proxy() -> str | None:
    """Returns what to say if Serve's proxy on this cluster bounds no connection; None if it does.

    None too if the host where it runs does not tell: nothing else depends on it.
    """
    head = next((host["NodeID"] for host in ray.nodes() if host["Alive"] and HEAD_RESOURCE in host["Resources"]), None)
    if head is None:
        return None
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    asked = ray.remote(_guard_here).options(num_cpus=0, scheduling_strategy=there).remote()
    try:
        return unguarded(ray.get(asked, timeout=HEAD_ANSWERS_S))
    except (GetTimeoutError, RayError) as error:
        logger.info("whether Serve's proxy bounds its connections is not known: %s", error)
        return None


def unguarded(given: str | None) -> str | None:
    """Returns what to say of the callback that Ray was started with where HTTP enters; None of ours."""
    wanted = RAY_ENVIRONMENT[GUARD_VARIABLE]
    if given == wanted:
        return None
    return (
        "Serve's proxy on this cluster sets no limits to slow or many connections: Ray was started there without them. "
        f"To have them, start Ray on its head, with Manta installed, with {GUARD_VARIABLE}={wanted}"
    )


def _guard_here() -> str | None:
    return os.environ.get(GUARD_VARIABLE)


def quiet_serve() -> None:
    """Keeps Serve from telling this process's terminal of each step; that is for Serve's own users."""
    from ray import serve

    del serve  # importing it sets up its logger
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def serve_listens_at() -> tuple[str, int] | None:
    """Returns the host and port of the Serve that runs on this cluster; None if none does.

    Serve tells this to nobody but its own client and, where there is one, Ray's dashboard.
    """
    from ray.serve.context import _get_global_client  # pyright: ignore[reportPrivateUsage]

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (str(client.http_config.host), int(client.http_config.port))


def _plain(host: str) -> str:
    return LOOPBACK[0] if host in LOOPBACK else host
