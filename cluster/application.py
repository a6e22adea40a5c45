"""The Serve application of a service, as Serve runs it: handing it over, and seeing whether it is as it should be."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve import Application

from cluster.causes import cause_in, cause_of
from cluster.names import SERVE_NAMESPACE
from cluster.resolve import Service
from cluster.spec import Replicas, ServiceSpec

# Serve gives a replica several tries; whoever waits gives up after the first, whose reason is the others' too.
FAILED_REPLICA = "A replica failed to start"
FAILED = "DEPLOY_FAILED"
SERVE_ANSWERS_S = 10.0  # whether it still has an application
Held = Mapping[str, int]  # deployments to numbers of replicas
NOTHING_HELD: Held = MappingProxyType({})
SETTLED = ("HEALTHY", "UPSCALING", "DOWNSCALING")  # UPDATING: replicas of another version are being exchanged


@dataclass(frozen=True)
class ApplicationState:
    """How far Serve has come.

    Args:
        serving: Replicas that run and are wanted.
        wanted: The replicas that are to run.
        settled: Whether exactly those run, and none starts or stops.
        unsettled: The deployments that are not as they should be, in words.
    """

    serving: int
    wanted: int
    settled: bool
    unsettled: str = ""


def hand_over(service: Service, application: Application | None = None) -> None:
    """Gives Serve the application, new or changed, without waiting for it.

    What stays the same keeps running: each deployment's version says which settings its replicas were made with.

    Args:
        application: What `make_application` has made of the service; None: made now.

    Raises:
        ValueError: The route prefix is another application's.
        RuntimeError: Serve's controller does not answer.
    """
    from ray import serve
    from ray.serve.api import RunTarget

    from cluster.ingress import quiet_serve

    quiet_serve()
    made = application or make_application(service)
    target = RunTarget(made, name=service.name, route_prefix=service.spec.api.route_prefix)
    try:
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except RayTaskError as error:
        raise ValueError(f"api.route_prefix: {cause_of(error)}") from error
    except RayError as error:
        raise RuntimeError(f"Serve's controller does not answer: {cause_of(error)}") from error


def make_application(service: Service, held: Held = NOTHING_HELD) -> Application:
    """Returns the application of a service, for `hand_over`.

    Args:
        held: The deployments that are to have just so many replicas for now, whatever range their load may choose from.

    Raises:
        ValueError: A file that it needs cannot be read on this host.
    """
    from cluster.app import build_service

    try:
        return build_service(service, held)
    except OSError as error:
        raise ValueError(f"the controller's host cannot read {error.filename}: {error.strerror}") from error


def application_exists(name: str) -> bool:
    """Returns whether Serve has an application of this name."""
    from ray import serve

    return name in serve.status().applications


def wanted_by_serve(service: str) -> bool:
    """Returns whether Serve has an application of a service, whatever its name, and starts what is missing of it.

    Serve does not tell what an application was made with, but for its autoscaling, which names the service.

    Raises:
        RayError: Serve's controller does not answer in time; it may be starting again, or hang.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME

    try:  # by name: Serve's own functions keep a handle, which is of no use once Serve was ended and started again
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
    except ValueError:
        return False
    details: Any = ray.get(controller.get_serve_instance_details.remote(), timeout=SERVE_ANSWERS_S)
    kept = [one for one in details["applications"].values() if one["status"] != "DELETING"]
    deployments = [found for one in kept for found in one["deployments"].values()]
    tried = [found["deployment_config"] for found in deployments if found["status"] != FAILED]  # a failed one no more
    return any(_service_of(config) == service for config in tried)


def _service_of(config: Mapping[str, Any]) -> str | None:
    """Returns what `autoscaling_config` has named; None: it is no deployment of ours, or does not scale."""
    policy = (config.get("autoscaling_config") or {}).get("policy") or {}
    return (policy.get("policy_kwargs") or {}).get("service")


def numbers_held(spec: ServiceSpec) -> Held:
    """Returns how many replicas run of each deployment that has a range, within its bounds."""
    from ray import serve

    application = serve.status().applications.get(spec.name)
    deployments = application.deployments if application is not None else {}
    running = {name: _plain(found.replica_states).get("RUNNING", 0) for name, found in deployments.items()}
    ranges = {name: one for name, one in _replicas(spec).items() if one.min < one.max}
    return {name: min(max(running.get(name, 0), one.min), one.max) for name, one in ranges.items()}


def application_state(spec: ServiceSpec, held: Held = NOTHING_HELD) -> ApplicationState:
    """Returns how far Serve has come with a service's application.

    Args:
        held: What `make_application` was given.

    Raises:
        RuntimeError: A replica failed to start; says why.
    """
    from ray import serve

    application = serve.status().applications.get(spec.name)
    wanted = _replicas(spec) | {name: Replicas(min=number, max=number) for name, number in held.items()}
    num_wanted = sum(replicas.num for replicas in wanted.values())
    if application is None:
        return ApplicationState(0, num_wanted, settled=False)
    if not _taken_over(application):
        return ApplicationState(0, num_wanted, settled=False, unsettled="Serve has not looked at it yet")
    for deployment, found in application.deployments.items():
        if found.status == FAILED or found.message.startswith(FAILED_REPLICA):
            raise RuntimeError(f"{deployment} did not start: {cause_in(found.message)}")
    if application.status == FAILED:
        raise RuntimeError(f"the Serve application did not start: {cause_in(application.message)}")
    deployments = application.deployments
    running = {name: _plain(found.replica_states) for name, found in deployments.items()}
    statuses = {name: str(found.status.value) for name, found in deployments.items()}
    unsettled = [
        f"{name} is {statuses.get(name, 'missing')} with {_shown(running.get(name, {}))}"
        for name, replicas in wanted.items()
        if not _as_wanted(statuses.get(name, ""), running.get(name, {}), replicas)
    ]
    if application.status != "RUNNING":
        unsettled.append(f"the application is {application.status}")
    serving = sum(min(states.get("RUNNING", 0), wanted[name].num) for name, states in running.items() if name in wanted)
    return ApplicationState(serving, num_wanted, not unsettled, "; ".join(unsettled))


def _taken_over(application: Any) -> bool:
    """Whether what Serve tells is about what it was handed last: until it looks at that, it says DEPLOYING, no more."""
    statuses = {str(found.status.value) for found in application.deployments.values()}
    return application.status != "DEPLOYING" or bool(statuses & {"UPDATING", "UPSCALING", "DOWNSCALING", FAILED})


def _replicas(spec: ServiceSpec) -> dict[str, Replicas]:
    """Returns the replicas of every deployment, as the service file says."""
    return {
        "Gateway": spec.api.replicas,
        "RouterReplica": spec.router.replicas,
        "AttentionNode": spec.attention.replicas,
    }


def _as_wanted(status: str, states: dict[str, int], replicas: Replicas) -> bool:
    """Whether a deployment has the replicas that it should; how many of a range is autoscaling's affair."""
    if replicas.min == replicas.max:
        return status == "HEALTHY" and states == {"RUNNING": replicas.max}
    return status in SETTLED and replicas.min <= states.get("RUNNING", 0)


def _shown(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in states.items()) or "no replica"


def _plain(states: Mapping[Any, int]) -> dict[str, int]:
    return {str(getattr(state, "value", state)): count for state, count in states.items()}
