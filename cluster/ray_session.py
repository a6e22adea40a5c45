"""Joins a Ray cluster, or starts one on this machine that ends with this process."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import ray
from ray._private import ray_constants
from ray._private.services import canonicalize_bootstrap_address

from cluster.hosts import mark_own
from cluster.names import NAMESPACE
from cluster.ray_token import demand_token, present_token
from transport.cores import available_cores
from transport.job import OwnJob
from transport.strangers import refuse_open

CONNECT_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 150 << 20  # Manta keeps no data in Ray's object store

# Of a Ray that Manta starts itself; read by every Ray process as it starts, and partly by this one.
RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's default, 15, lets anything else on the machine go first
    "RAY_USAGE_STATS_ENABLED": "0",
    # Keeps every port of Ray on loopback: unless clusters of several hosts are ruled out, which Ray does by itself on
    # other systems than Linux, it replaces 127.0.0.1 by an address that others reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Serve's own settings for throughput (RAY_SERVE_THROUGHPUT_OPTIMIZED), but for direct ingress, which would move
    # the gateways to other ports: fewer threads between proxy and gateway, and no log line for each request.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    # A company's proxy (http_proxy, https_proxy), which gRPC would go through even on loopback: between Serve's proxy
    # and a gateway it would read, or lose, every request.
    "no_grpc_proxy": "127.0.0.1,localhost",
    # The largest message between proxy and gateway: an answer, or all that has gathered of a stream for a client that
    # reads slowly. At gRPC's default of 4 MiB the answer is lost, and a 500 takes its place, after all the work. What
    # an answer may hold is bounded by `limits.request`.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str((1 << 31) - 1),
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Called in Serve's proxy as it starts: the time-outs that its HTTP server lacks.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http_guard:install",
    # How often Serve's controller looks at its replicas; at its default of 0.1 s, that alone takes 2.5 % of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # How often it looks at its proxy, which it replaces after three failures: at its default of 10 s, a killed proxy
    # keeps every client out for half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
# The same, but no business of the process that starts it.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "USE_TORCH": "0",  # for transformers in a gateway, which needs no torch; nothing else reads it
}
# Ray's own metrics and its history of tasks, which nobody reads here (a gateway's /metrics has Manta's). With them,
# every process talks to an agent now and then, and a Ctrl-C while that agent starts takes ten seconds.
SYSTEM_CONFIG = {"task_events_report_interval_ms": 0, "enable_metrics_collection": False}


def start_local_ray(num_cpus: int | None = None) -> None:
    """Starts Ray on this machine, on loopback only and with a token; it ends with this process.

    Args:
        num_cpus: The CPUs that Ray may hand out; None: the cores that this process may use.

    Raises:
        RuntimeError: Ray does not start, its token cannot be kept, or this process has joined a cluster already.
    """
    os.environ.update(RAY_ENVIRONMENT)
    demand_token()
    with _worker_environment(), _loopback_only(), _signals_kept():
        try:
            ray.init(
                address="local",
                job_config=OwnJob(),
                namespace=NAMESPACE,
                num_cpus=num_cpus or available_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _system_config=SYSTEM_CONFIG,
            )
            mark_own()
        except BaseException:
            ray.shutdown()  # Ctrl-C in the middle of it: some of its processes may run
            raise


def join_ray(address: str) -> None:
    """Joins a running cluster, unless this process has joined one.

    Args:
        address: As for `ray.init`; `auto` looks for one on this machine.

    Raises:
        ConnectionError: There is none, or it does not answer.
        ValueError: It lets strangers in (`transport.strangers`), or asks for a token that is not here.
    """
    if ray.is_initialized():
        refuse_open(ray.get_runtime_context().gcs_address)
        return
    found = _find_cluster(address)
    _check_answers(found)
    present_token(found)
    with _signals_kept(), _loopback_only() if found.startswith("127.") else nullcontext():
        ray.init(
            address=found,
            job_config=OwnJob(),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _find_cluster(address: str) -> str:
    """Returns HOST:PORT of a cluster; one that is on loopback only stays so, where Ray would give another address."""
    if "://" in address:
        return address
    with _loopback_only():
        found = canonicalize_bootstrap_address(address)
    if found is None:
        raise ConnectionError(
            "no Ray cluster runs on this machine; start one with `manta serve`, or with `RAY_AUTH_MODE=token ray start "
            "--head`, or name one with --address HOST:PORT"
        )
    return found


def _check_answers(address: str) -> None:
    """Fails within seconds where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address} ({error}); see --address") from error


def stop_local_ray() -> None:
    """Ends the Ray that `start_local_ray` started. A signal does not interrupt it: it takes a second or two."""
    with _signals_kept(ignored=True):
        ray.shutdown()


@dataclass(frozen=True)
class RaySession:
    """A cluster that this process takes part in.

    Args:
        own: Whether it was started for this session, and ends with it.
        joined: Whether this session joined it, and leaves it at its end.
    """

    own: bool
    joined: bool

    def close(self) -> None:
        """Ends the cluster if it is the session's own; leaves it if the session has joined it."""
        if self.own:
            stop_local_ray()
        elif self.joined:
            ray.shutdown()


def open_session(address: str | None) -> RaySession:
    """Joins the cluster at `address`, unless this process has joined one already; None starts one on this machine.

    Raises:
        ConnectionError: There is none at `address`.
        ValueError: The one at `address` lets strangers in, or asks for a token that is not here.
        RuntimeError: Ray does not start, or `address` is None and this process has joined a cluster already.
    """
    if address is None:
        start_local_ray()
        return RaySession(own=True, joined=True)
    before = ray.is_initialized()
    join_ray(address)
    return RaySession(own=False, joined=not before)


@contextmanager
def joined(address: str | None) -> Generator[None]:
    """A running cluster joined for as long as the context lasts; None looks for one on this machine."""
    session = open_session(address or "auto")
    try:
        yield
    finally:
        session.close()


@contextmanager
def _worker_environment() -> Generator[None]:
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _loopback_only() -> Generator[None]:
    """RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER for this process, in which Ray has read it already."""
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _signals_kept(ignored: bool = False) -> Generator[None]:
    """Puts the handlers of what ends a command back at the end: Ray installs its own, which exits at once.

    A SIGTERM that meets Ray's is handed to the one from before, which for a command ends it as Ctrl-C does.

    Args:
        ignored: Whether those signals are ignored meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in before if ignored else ():
            signal.signal(number, signal.SIG_IGN)
        yield
    except SystemExit as ending:
        handler = before[signal.SIGTERM]
        if ending.code == signal.SIGTERM and callable(handler):
            handler(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
