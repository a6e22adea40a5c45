"""Starts a service's parts on a Ray cluster that this process has joined, and waits until they serve."""

import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from cluster.application import application_exists, application_state, hand_over
from cluster.causes import cause_of
from cluster.controller import start_controller
from cluster.ingress import on_head_host, start_serve
from cluster.resize import GRACE_S
from cluster.resolve import Service
from cluster.spec import ServiceSpec

POLL_S = 0.1
CONTROL_TIMEOUT_S = 30.0
CONTROLLER_STARTS_S = 180.0  # its process, which is no part of loading and takes long on a busy host
HEALTH_TIMEOUT_S = 5.0

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a start has come: a stage in words, and how much of it is done (`total` 0: nothing to count)."""

    stage: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


def claim(service: Service) -> Any:
    """Starts the service's controller, and with it its experts. Returns the controller.

    Raises:
        ValueError: A service of this name runs already.
    """
    try:
        return start_controller(service, take_over=False)
    except ValueError as error:
        raise ValueError(
            f"name: {service.name} was given, and a service of that name runs on this Ray cluster already; "
            f"stop it with `manta down {service.name}`, or give this one another name in its service file"
        ) from error


def start_parts(service: Service, controller: Any, url: str, on_progress: OnProgress) -> None:
    """Starts the Serve application beside the experts, and waits until every part serves.

    Raises:
        ValueError: Serve's host and port are others, or the name or route prefix is another application's.
        RuntimeError: A part, or the controller, did not come up; says which, and why.
    """
    progress = Progress("starting the parts")
    on_progress(progress)
    start_serve(service.spec)
    _deploy(service)
    _wait_controller(controller)
    deadline_s = time.monotonic() + service.spec.limits.load_timeout_s + GRACE_S
    while True:
        status = _status(controller)
        _check_experts(status)
        app_runs = application_state(service.spec).settled
        before, progress = progress, progress_of(status, service.spec)
        if progress != before:
            on_progress(progress)
        if app_runs and progress.stage == CONNECTING and progress.done == progress.total:
            break
        _check_deadline(deadline_s, service.spec, progress)
        time.sleep(POLL_S)
    if on_head_host():
        _wait_healthy(url, deadline_s, service.spec)


PLACING, LOADING, CONNECTING = "finding room for the experts", "loading the experts", "connecting the parts"


def progress_of(status: Status, spec: ServiceSpec) -> Progress:
    """Returns what a controller's status says of a start. Pure."""
    replicas = [replica for shard in status.get("experts", ()) for replica in shard["replicas"]]
    if not replicas:
        return Progress(PLACING)
    serving = sum(replica["state"] == "serving" for replica in replicas)
    if serving < len(replicas):
        return Progress(LOADING, serving, len(replicas))
    wanted = {"gateways": spec.api, "routers": spec.router, "attention_nodes": spec.attention}
    done = sum(min(len(status[part]), section.replicas.num) for part, section in wanted.items())
    return Progress(CONNECTING, done, sum(section.replicas.num for section in wanted.values()))


def _deploy(service: Service) -> None:
    """Hands the application to Serve, without waiting for it.

    Raises:
        ValueError: The name or the route prefix is another application's.
    """
    if application_exists(service.name):
        raise ValueError(
            f"name: {service.name} was given, and Serve has an application of that name already; stop it with "
            "`serve delete`, or give the service another name in its service file"
        )
    hand_over(service)


def _wait_controller(controller: Any) -> None:
    """Waits until the controller answers.

    Raises:
        RuntimeError: It is gone, or not within `CONTROLLER_STARTS_S`.
    """
    deadline_s = time.monotonic() + CONTROLLER_STARTS_S
    while True:
        try:
            ray.get(controller.status.remote(), timeout=CONTROL_TIMEOUT_S)
            return
        except ActorDiedError as error:
            raise RuntimeError(f"the service's controller is gone: {cause_of(error)}") from error
        except RayError as error:
            if time.monotonic() > deadline_s:
                late = f"did not answer within {CONTROLLER_STARTS_S:g} s of its start"
                raise RuntimeError(f"the service's controller {late}: {cause_of(error)}") from error
        time.sleep(POLL_S)


def _status(controller: Any) -> Status:
    """Returns the controller's status; nothing while it is being restarted."""
    try:
        return ray.get(controller.status.remote(), timeout=CONTROL_TIMEOUT_S)
    except (RayError, GetTimeoutError):
        return {}


def _check_experts(status: Status) -> None:
    for shard in status.get("experts", ()):
        for replica in shard["replicas"]:
            if replica["error"]:
                raise RuntimeError(f"expert shard {shard['shard']} cannot be loaded: {replica['error']}")


def _check_deadline(deadline_s: float, spec: ServiceSpec, progress: Progress) -> None:
    if time.monotonic() > deadline_s:
        count = f" ({progress.done} of {progress.total})" if progress.total else ""
        raise RuntimeError(
            f"not ready after {spec.limits.load_timeout_s:g} s (limits.load_timeout_s): still {progress.stage}{count}"
        )


def _wait_healthy(url: str, deadline_s: float, spec: ServiceSpec) -> None:
    """Waits until /health says 200: HTTP gets through Serve's proxy to a gateway that has a node.

    Raises:
        RuntimeError: Not within `limits.load_timeout_s`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # none between us and ourselves
    while True:
        try:
            with opener.open(f"{url}/health", timeout=HEALTH_TIMEOUT_S):
                return
        except OSError as error:  # an HTTPError is one
            stage = f"waiting for {url}/health, which says: {error}"
        _check_deadline(deadline_s, spec, Progress(stage))
        time.sleep(POLL_S)
