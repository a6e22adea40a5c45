"""The Serve application of a service, as Serve runs it: handing it over, and seeing whether it is as it should be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from cluster.causes import cause_in, cause_of
from cluster.resolve import Service
from cluster.spec import Replicas, ServiceSpec

# Serve gives a replica several tries; whoever waits gives up after the first, whose reason is the others' too.
FAILED_REPLICA = "A replica failed to start"
FAILED = "DEPLOY_FAILED"


@dataclass(frozen=True)
class ApplicationState:
    """How far Serve has come.

    Args:
        serving: Replicas that run and are wanted.
        wanted: The replicas that are to run.
        settled: Whether exactly those run, and none starts or stops.
    """

    serving: int
    wanted: int
    settled: bool


def hand_over(service: Service) -> None:
    """Gives Serve the application, new or changed, without waiting for it.

    What stays the same keeps running: each deployment's version says which settings its replicas were made with.

    Raises:
        ValueError: The route prefix is another application's.
    """
    from ray import serve
    from ray.serve.api import RunTarget

    from cluster.app import build_service
    from cluster.ingress import quiet_serve

    quiet_serve()
    target = RunTarget(build_service(service), name=service.name, route_prefix=service.spec.api.route_prefix)
    try:
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except RayError as error:
        raise ValueError(f"api.route_prefix: {cause_of(error)}") from error


def application_exists(name: str) -> bool:
    """Returns whether Serve has an application of this name."""
    from ray import serve

    return name in serve.status().applications


def failed_deployments(name: str) -> dict[str, str]:
    """Returns the deployments of an application of which a replica failed to start, and what Serve says of it.

    Serve forgets it a turn after it was given another version.
    """
    from ray import serve

    application = serve.status().applications.get(name)
    found = {} if application is None else application.deployments
    return {
        deployment: one.message
        for deployment, one in found.items()
        if one.status == FAILED or one.message.startswith(FAILED_REPLICA)
    }


def application_state(spec: ServiceSpec, forgiven: Collection[str] = ()) -> ApplicationState:
    """Returns how far Serve has come with a service's application.

    Args:
        forgiven: Deployments whose failure is still that of an earlier version.

    Raises:
        RuntimeError: A replica failed to start; says why.
    """
    from ray import serve

    application = serve.status().applications.get(spec.name)
    wanted = {"Gateway": spec.api.replicas, "RouterReplica": spec.router.replicas}
    wanted["AttentionNode"] = spec.attention.replicas
    num_wanted = sum(replicas.num for replicas in wanted.values())
    if application is None:
        return ApplicationState(0, num_wanted, settled=False)
    failed = failed_deployments(spec.name)
    for deployment in failed.keys() - forgiven:
        raise RuntimeError(f"{deployment} did not start: {cause_in(failed[deployment])}")
    if application.status == FAILED and not forgiven:
        raise RuntimeError(f"the Serve application did not start: {cause_in(application.message)}")
    running = {name: _plain(found.replica_states) for name, found in application.deployments.items()}
    settled = application.status == "RUNNING" and all(
        _as_wanted(running.get(name, {}), replicas) for name, replicas in wanted.items()
    )
    serving = sum(min(states.get("RUNNING", 0), wanted[name].num) for name, states in running.items() if name in wanted)
    return ApplicationState(serving, num_wanted, settled)


def _as_wanted(states: dict[str, int], replicas: Replicas) -> bool:
    """Whether a deployment's replicas all run, and are as many as allowed."""
    return set(states) == {"RUNNING"} and replicas.min <= states["RUNNING"] <= replicas.max


def _plain(states: Mapping[Any, int]) -> dict[str, int]:
    return {str(getattr(state, "value", state)): count for state, count in states.items()}
