"""Ends everything of one service, and nothing else on the Ray cluster."""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.causes import cause_of
from cluster.fleet import kill_experts
from cluster.ingress import quiet_serve
from cluster.names import NAMESPACE, controller_name
from cluster.placement import release_all
from cluster.secret import forget_data_plane_key
from cluster.stored import forget_service

CONTROL_TIMEOUT_S = 30.0
RESTART_TIMEOUT_S = 15.0
EXIT_TIMEOUT_S = 5.0
POLL_S = 0.05
RETRY_S = 0.3


def stop_service(name: str) -> None:
    """Ends a service's gateways, nodes, routers, experts and controller; returns once they are gone.

    A controller that cannot even be killed, its host being out of reach, is waited for twice EXIT_TIMEOUT_S.
    Interrupted, it leaves nothing that stays: whatever was not told to end yet is told so, and not waited for.
    """
    controller = find_controller(name)
    apps = {name}
    try:
        apps |= set() if controller is None else _stop_controller(name, controller)
        _delete_apps(apps, wait=True)
    finally:
        # Does nothing after a complete stop. The controller goes last: while it answers that the service is being
        # stopped, no gateway, node or router that still runs starts another one.
        _delete_apps(apps, wait=False)
        kill_experts(name)
        release_all(name)
        forget_data_plane_key(name)
        forget_service(name)
        if controller is not None:
            controller.exit.remote()
    if _wait_gone(name, controller):
        release_all(name)  # what the controller still reserved while it was being told


def ask_controller(name: str, question: str) -> Any:
    """Returns what a service's controller answers to a call without arguments, such as `status`.

    Asks again for a while if it is just being restarted.

    Raises:
        RuntimeError: It does not answer.
    """
    deadline_s = time.monotonic() + RESTART_TIMEOUT_S
    while True:
        try:
            controller = ray.get_actor(controller_name(name), NAMESPACE)
            return ray.get(getattr(controller, question).remote(), timeout=CONTROL_TIMEOUT_S)
        except (RayError, ValueError) as error:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the controller of {name} does not answer: {cause_of(error)}") from error
        time.sleep(RETRY_S)


def find_controller(name: str) -> Any:
    """Returns a service's controller, or None if it has none."""
    try:
        return ray.get_actor(controller_name(name), NAMESPACE)
    except ValueError:
        return None


def services() -> list[str]:
    """Returns the names of the services on this cluster."""
    suffix = controller_name("")
    return sorted(name.removesuffix(suffix) for name in _actor_names() if name.endswith(suffix))


def _actor_names() -> list[str]:
    found: Any = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def _stop_controller(name: str, controller: Any) -> set[str]:
    """Tells it to stop; returns the Serve applications of its members. Kills it if it does not answer."""
    try:
        return set(ask_controller(name, "stop"))
    except RuntimeError:
        ray.kill(controller, no_restart=True)
        return set()


def _delete_apps(apps: set[str], wait: bool) -> None:
    from ray import serve

    quiet_serve()
    for app in apps & serve.status().applications.keys():
        serve.delete(app, _blocking=wait)


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
