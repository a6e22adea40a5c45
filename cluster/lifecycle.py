"""Starts, shows, changes and stops a service; what the `manta` command calls."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.causes import cause_of
from cluster.changes import Change, changes_between
from cluster.gpus import unused_gpus
from cluster.hosts import num_gpus, present_room
from cluster.ingress import check_port_free, unguarded_proxy
from cluster.key_rotation import STEP_TIMEOUT_S
from cluster.own_room import beyond_this_machine
from cluster.patience import TIMEOUT_S, Deadline
from cluster.plain import pack
from cluster.ray_session import RaySession, joined, open_session
from cluster.resize import GRACE_S
from cluster.resolve import Service, resolve
from cluster.room import Room
from cluster.spec import ServiceSpec, SpecError
from cluster.startup import OnProgress, Progress, claim, start_parts
from cluster.teardown import ask_controller, find_controller, running_service, services, stop_service
from transport.address import check_socket_folder
from transport.cores import available_cores

__all__ = [
    "Change",
    "OnProgress",
    "Plan",
    "Progress",
    "RunningService",
    "apply",
    "down",
    "plan",
    "rotate_keys",
    "serve",
    "status",
]

WATCH_INTERVAL_S = 2.0
APPLY_POLL_S = 0.2


class RunningService:
    """A service that answers. As a context, it stops the service (and the Ray it started) at the end."""

    def __init__(self, service: Service, url: str, session: RaySession) -> None:
        self._service = service
        self._session = session
        self._stopped = threading.Event()
        self.url = url

    def wait(self) -> None:
        """Blocks until Ctrl-C, or until the service is gone.

        Raises:
            RuntimeError: The service has ended by itself (`manta down`, or all of Ray did).
        """
        name = self._service.name
        while not self._stopped.wait(WATCH_INTERVAL_S):
            try:
                gone = find_controller(name) is None
            except (RayError, ConnectionError) as error:
                raise RuntimeError(f"service {name} is gone, with the Ray cluster it ran on") from error
            if gone:
                raise RuntimeError(f"service {name} is gone: it was stopped from elsewhere")

    def stop(self) -> None:
        """Stops this service, and nothing else on the cluster."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        try:
            if not self._session.own:  # else it ends with the Ray that was started for it
                stop_service(self._service.name)
        finally:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(
    spec: ServiceSpec,
    address: str | None,
    on_progress: OnProgress,
    on_notice: Callable[[str], None] = lambda text: None,
) -> RunningService:
    """Starts a service and returns once it answers.

    Args:
        address: A Ray cluster to use (the one this process has joined, if it has); None starts one on this machine.
        on_notice: Called with what the user should know, such as that GPUs are not used, or limits not kept.

    Raises:
        ValueError: The model cannot be served, a process asks for more than a machine of our own has, the port is
            taken, or the cluster's HTTP listens elsewhere.
        RuntimeError: A part did not come up; says which, and why.
        ConnectionError: There is no Ray cluster at `address`.
        OSError: There is no place for sockets.
    """
    if address is None:  # what cannot be served is refused before Ray is started for it
        resolve(spec, Room((float(available_cores()),), own=True), loopback=True)
        check_port_free(spec.api.host, spec.api.port)
        check_socket_folder()
    on_progress(Progress("starting Ray" if address is None else "joining Ray"))
    session = open_session(address)
    try:
        room, gpus = present_room(), num_gpus()
        if address is None and (problems := list(beyond_this_machine(spec, room.hosts[0], gpus))):
            raise SpecError(problems)
        service = resolve(spec, room, loopback=address is None)
        if notice := unused_gpus(gpus, spec, service.config.num_experts):
            on_notice(notice)
        if not service.room.own and (notice := unguarded_proxy()):
            on_notice(notice)
        controller = claim(service)
    except BaseException:
        session.close()
        raise
    running = RunningService(service, _url(spec), session)
    try:
        start_parts(service, controller, running.url, on_progress)
    except BaseException:
        running.stop()
        raise
    return running


def _url(spec: ServiceSpec) -> str:
    host = "127.0.0.1" if spec.api.host in ("0.0.0.0", "::") else spec.api.host
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{spec.api.port}{spec.api.route_prefix.rstrip('/')}"


def status(name: str | None, address: str | None, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Returns what runs, where and how loaded, as plain data.

    Raises:
        ValueError: There is no such service, or there are several and none was named.
        ConnectionError: There is no Ray cluster.
        RuntimeError: It has no controller.
        TimeoutError: Its controller does not answer within `timeout_s`.
    """
    with joined(address):
        deadline = Deadline(timeout_s)
        return ask_controller(_find(name, deadline), "status", deadline)


def down(name: str | None, address: str | None, timeout_s: float = TIMEOUT_S) -> None:
    """Stops one service, and nothing else.

    Raises:
        ValueError: There is no such service, or there are several and none was named.
        ConnectionError: There is no Ray cluster.
        TimeoutError: Something of it has not ended within `timeout_s`.
    """
    with joined(address):
        deadline = Deadline(timeout_s)
        stop_service(_find(name, deadline), deadline)


@dataclass(frozen=True)
class Plan:
    """What `manta apply` would do.

    Args:
        running: The service as it runs (or is being made).
        wanted: The service as the file says.
        changes: What differs.
    """

    running: Service
    wanted: Service
    changes: tuple[Change, ...]

    @property
    def refused(self) -> tuple[Change, ...]:
        """The changes that cannot be made."""
        return tuple(change for change in self.changes if change.how == "refused")


def plan(spec: ServiceSpec, address: str | None, timeout_s: float = TIMEOUT_S) -> Plan:
    """Returns how a service file differs from what runs under its name.

    Raises:
        ValueError: No service of that name runs, or the file's model cannot be served.
        ConnectionError: There is no Ray cluster.
        FormatError: The service's controller is of another Manta, and is not understood.
        RuntimeError: The service has no controller.
        TimeoutError: Its controller does not answer within `timeout_s`.
    """
    with joined(address):
        return _plan(spec, Deadline(timeout_s))


def _plan(spec: ServiceSpec, deadline: Deadline) -> Plan:
    running = running_service(_find(spec.name, deadline), deadline)
    wanted = resolve(spec, running.room, running.loopback)  # whoever asks, what was decided at its start stays decided
    return Plan(running, wanted, changes_between(running, wanted))


def apply(planned: Plan, address: str | None, on_progress: OnProgress, timeout_s: float | None = None) -> None:
    """Makes a running service what the plan says, and returns once it is so.

    Interrupted, or late, it leaves the change under way: the service's controller makes it.

    Args:
        timeout_s: How long it waits; None: as long as the service's own limits let the change take.

    Raises:
        ValueError: The plan holds a change that is refused, or the service has been changed since it was made.
        RuntimeError: The change failed and was rolled back; says why. Or the service has no controller.
        TimeoutError: The change was not made in time, or the controller does not answer.
        ConnectionError: There is no Ray cluster.
    """
    if planned.refused:
        fields = ", ".join(change.field for change in planned.refused)
        raise ValueError(f"{fields}: cannot be changed while the service runs; nothing was changed")
    name, deadline = planned.wanted.name, Deadline(timeout_s or longest_s(planned))
    with joined(address):
        if not planned.changes and not _went_wrong(name):
            _follow(planned.running, on_progress, deadline)  # it may still be on its way there
            return
        controller = find_controller(name)
        if controller is None:
            raise ValueError(f"service {name} is gone")
        _start_change(controller, planned)
        _follow(planned.wanted, on_progress, deadline)


def longest_s(planned: Plan) -> float:
    """Returns how long a change takes at most, by the limits of the two services: made, and taken back."""
    limits = [service.spec.limits for service in (planned.running, planned.wanted)]
    return TIMEOUT_S + sum(2 * (one.load_timeout_s + one.drain_timeout_s + 2 * GRACE_S) for one in limits)


def _follow(wanted: Service, on_progress: OnProgress, deadline: Deadline) -> None:
    """Returns once the service is as wanted; a controller that is restarted meanwhile goes on with it.

    Raises:
        RuntimeError: It was not made; says why. Or the service has no controller.
        TimeoutError: It was not made in time, or the controller does not answer.
    """
    name, version, stage = wanted.name, wanted.version, "starting"
    while True:
        # In this order: if it ends in between, the status says so.
        accepted = running_service(name)
        status = ask_controller(name, "status")
        change = status["resize"] or {}
        if change.get("version") == version:
            if change["state"] == "done":
                return
            if change["state"] != "running":
                raise RuntimeError(f"the change was not made ({change['state']}): {change['error']}")
            stage = change["stage"]
            on_progress(Progress(stage, change["done"], change["total"]))
        elif accepted.version != version:  # a restarted controller knows what holds, and not how it came to that
            raise RuntimeError("the change was not made: it was rolled back, or another one followed (manta status)")
        elif status["spec_version"] == version:
            return
        if not deadline.left_s:
            raise deadline.late(
                f"the change was not made (still {stage})",
                "it goes on without this command: `manta status` shows how far it is, `manta apply` follows it again",
            )
        time.sleep(APPLY_POLL_S)


def rotate_keys(name: str, address: str | None, on_progress: OnProgress, timeout_s: float | None = None) -> None:
    """Changes the data-plane key of a running service for a new one, and returns once only that is valid.

    Raises:
        ValueError: There is no such service, or its key is being changed already.
        RuntimeError: It was not changed all the way: the old key stays valid beside the new one; says why.
        TimeoutError: It was not changed in time, or the controller does not answer.
    """
    with joined(address):
        deadline = Deadline(timeout_s or TIMEOUT_S + 3 * STEP_TIMEOUT_S)
        controller = find_controller(_find(name, deadline))
        if controller is None:
            raise ValueError(f"service {name} is gone")
        try:
            ray.get(controller.ask.remote("rotate_keys"), timeout=max(APPLY_POLL_S, deadline.left_s))
        except RayTaskError as error:
            raise ValueError(cause_of(error)) from error
        except (RayError, AttributeError) as error:  # no method of that name: it is of before versioned formats
            raise RuntimeError(f"the controller of {name} was not told to: {cause_of(error)}") from error
        while (keys := ask_controller(name, "status", deadline)["keys"])["state"] == "running":
            on_progress(Progress("changing the data-plane key"))
            if not deadline.left_s:
                raise deadline.late("the data-plane key was not changed", "it goes on; `manta status --json` shows it")
            time.sleep(APPLY_POLL_S)
        if keys["error"]:
            raise RuntimeError(f"the data-plane key was not changed all the way: {keys['error']}")


def _went_wrong(name: str) -> bool:
    """Whether going back after the last change has failed, so that nobody knows what runs."""
    change = ask_controller(name, "status")["resize"] or {}
    return change.get("state") == "failed"


def _start_change(controller: Any, planned: Plan) -> None:
    try:
        call = controller.apply.remote(pack(planned.wanted), planned.running.version)
        ray.get(call, timeout=TIMEOUT_S)
    except RayTaskError as error:
        raise ValueError(cause_of(error)) from error
    except (RayError, GetTimeoutError) as error:
        raise RuntimeError(
            f"the controller of {planned.wanted.name} does not answer: {cause_of(error)}; `manta status` tells whether "
            "the change was begun; if not, run `manta apply` again"
        ) from error


def _find(name: str | None, deadline: Deadline) -> str:
    found = services(deadline)
    if name is None and len(found) == 1:
        return found[0]
    if name in found:
        return name
    running = ", ".join(found) or "none"
    asked = f"{name} was given" if name else "no service was named"
    raise ValueError(f"{asked}; services on this cluster: {running}")
