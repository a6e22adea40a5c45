"""Ends everything of one service, and nothing else on the Ray cluster."""

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.causes import cause_of
from cluster.fleet import kill_experts
from cluster.ingress import quiet_serve
from cluster.names import NAMESPACE, controller_name, experts_prefix
from cluster.patience import Deadline
from cluster.placement import release_all
from cluster.plain import FormatError, unpack
from cluster.resolve import Service
from cluster.secret import forget_data_plane_key
from cluster.stored import forget_service, stored_service

SILENT_S = 10.0
RESTART_TIMEOUT_S = 15.0  # a controller that is not there for so long is gone
EXIT_TIMEOUT_S = 5.0
SERVE_WAITS = "Serve has not answered"
SERVE_REMEDY = "it may be starting again: try once more, with more time, or end all of Ray with `ray stop`"
RAY_REMEDY = "is the Ray cluster well? `ray status` tells; try again, with more time"
POLL_S = 0.05
RETRY_S = 0.3


def stop_service(name: str, deadline: Deadline | None = None) -> None:
    """Ends a service's gateways, nodes, routers, experts and controller; returns once they are gone.

    A controller that cannot even be killed, its host being out of reach, is waited for twice EXIT_TIMEOUT_S.
    Interrupted, it leaves nothing that stays: whatever was not told to end yet is told so, and not waited for.

    Raises:
        TimeoutError: Something was told to end, and has not ended in time; says what.
    """
    deadline = deadline or Deadline()
    controller = find_controller(name)
    apps = {name}
    try:
        apps |= set() if controller is None else _stop_controller(name, controller, deadline)
        _delete_apps(apps, deadline, wait=True)
    finally:
        # Does nothing after a complete stop. The controller goes last: while it answers that the service is being
        # stopped, no gateway, node or router that still runs starts another one.
        try:
            _delete_apps(apps, Deadline(EXIT_TIMEOUT_S), wait=False)
        finally:
            _end_all_but_apps(name, controller)
    if _wait_gone(name, controller):
        release_all(name)  # what the controller still reserved while it was being told


def _end_all_but_apps(name: str, controller: Any) -> None:
    kill_experts(name)
    release_all(name)
    forget_data_plane_key(name)
    forget_service(name)
    if controller is not None:
        controller.exit.remote()


def ask_controller(name: str, question: str, deadline: Deadline | None = None) -> Any:
    """Returns what a service's controller answers to a call without arguments, such as `status`.

    Asks again for a while if it is just being restarted.

    Raises:
        FormatError: It does not understand what it has to tell of.
        RuntimeError: It is gone.
        TimeoutError: It does not answer in time.
    """
    deadline, started_s = deadline or Deadline(), time.monotonic()
    while True:
        try:
            controller = ray.get_actor(controller_name(name), NAMESPACE)
            return _answer_to(getattr(controller, question).remote(), name, deadline)
        except GetTimeoutError as error:
            raise deadline.late(
                f"the controller of {name} has not answered",
                "if it hangs, the service's parts have it started again within half a minute: try again then",
            ) from error
        except (RayError, ValueError) as error:
            if (cause := _format_error(error)) is not None:
                raise cause from None
            if time.monotonic() > started_s + RESTART_TIMEOUT_S or not deadline.left_s:
                stored_service(name, "good")  # perhaps it is there no more because of that
                raise RuntimeError(
                    f"the controller of {name} is not there: {cause_of(error)}; its parts start another one: try again "
                    "in a while, or end what is left of the service with `manta down`"
                ) from error
        time.sleep(RETRY_S)


def _format_error(error: Exception) -> FormatError | None:
    """Returns what a controller could not read; it comes as Ray's, and as its own, error at once."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, FormatError) else None
    return error if isinstance(error, FormatError) else None


def _answer_to(call: Any, name: str, deadline: Deadline) -> Any:
    """Returns what a call is answered. If that takes long, it is because of what is stored, perhaps.

    Raises:
        FormatError: What is stored of the service is of another Manta, and cannot be read.
        GetTimeoutError: It is not answered in time.
    """
    while True:
        try:
            return ray.get(call, timeout=max(POLL_S, min(SILENT_S, deadline.left_s)))
        except GetTimeoutError:
            stored_service(name, "good")
            if not deadline.left_s:
                raise


def running_service(name: str, deadline: Deadline | None = None) -> Service:
    """Returns what a service was last told to be.

    Raises:
        FormatError: Its controller is of another Manta, and is not understood; nothing was changed.
        RuntimeError: It is gone.
        TimeoutError: It does not answer in time.
    """
    return unpack(Service, ask_controller(name, "service", deadline), f"what the controller of {name} says", exact=True)


def find_controller(name: str) -> Any:
    """Returns a service's controller, or None if it has none."""
    try:
        return ray.get_actor(controller_name(name), NAMESPACE)
    except ValueError:
        return None


def services(deadline: Deadline | None = None) -> list[str]:
    """Returns the names of the services on this cluster, those too of which only expert actors are left.

    Raises:
        TimeoutError: Ray does not tell in time.
    """
    names = (deadline or Deadline()).answer(_actor_names, "Ray has not told what runs", RAY_REMEDY)
    controllers, experts = controller_name(""), experts_prefix("")
    found = {name.removesuffix(controllers) for name in names if name.endswith(controllers)}
    return sorted(found | {name.partition(experts)[0] for name in names if experts in name})


def _actor_names() -> list[str]:
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def _stop_controller(name: str, controller: Any, deadline: Deadline) -> set[str]:
    """Tells it to stop; returns the Serve applications of its members. Kills it if it does not answer."""
    try:
        return set(ask_controller(name, "stop", Deadline(deadline.left_s / 2)))
    except (FormatError, RuntimeError, TimeoutError):
        ray.kill(controller, no_restart=True)
        return set()


def _delete_apps(apps: set[str], deadline: Deadline, wait: bool) -> None:
    from ray import serve

    quiet_serve()
    for app in apps & deadline.answer(_applications, SERVE_WAITS, SERVE_REMEDY):
        deadline.answer(lambda app=app: serve.delete(app, _blocking=False), SERVE_WAITS, SERVE_REMEDY)
    while wait and (left := apps & deadline.answer(_applications, SERVE_WAITS, SERVE_REMEDY)):
        if not deadline.left_s:
            late = f"Serve has not ended {', '.join(sorted(left))}"
            raise deadline.late(late, "it goes on with that: `manta status` shows what is left")
        time.sleep(POLL_S)


def _applications() -> set[str]:
    from ray import serve

    return set(serve.status().applications)


def _wait_gone(name: str, controller: Any) -> bool:
    """Waits until the controller has left, and kills it if it takes too long; returns whether it has."""
    deadline_s, killed = time.monotonic() + EXIT_TIMEOUT_S, False
    while controller_name(name) in _actor_names():
        if time.monotonic() > deadline_s:
            if killed or controller is None:
                return False
            ray.kill(controller, no_restart=True)
            deadline_s, killed = time.monotonic() + EXIT_TIMEOUT_S, True
        time.sleep(POLL_S)
    return True
