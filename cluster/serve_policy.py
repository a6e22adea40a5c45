"""Ray Serve's side of autoscaling: the policy that its controller asks about attention nodes and routers.

What Serve does, in 2.60: each replica's `record_autoscaling_stats` is read and sent to Serve's controller (of the
replicas that have an `AutoscalingConfig` from their start); the controller calls the policy in every turn of its loop,
several times a second, and applies the bounds. The policy lives there for as long as its deployment's configuration
stays as it is, and must not fail: that would hold up every application of the cluster.
"""

import logging
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.names import NAMESPACE, controller_name
from cluster.scaling import History, Load, Rules, decide
from cluster.spec import AutoscalingSpec, Replicas

logger = logging.getLogger("ray.serve")  # whose lines end up in the log of Serve's controller

POLICY = "cluster.serve_policy:UtilizationPolicy"
# How often each replica tells Serve's controller its stats. What a decision sees is their mean over one interval.
REPORTS_PER_INTERVAL = 4


def autoscaling_config(service: str, part: str, replicas: Replicas, autoscaling: AutoscalingSpec) -> AutoscalingConfig:
    """Returns what makes Serve scale a deployment that records `utilization` and `queued`, see `cluster.scaling.Load`.

    A fixed number is a range too: a replica that was started without this would never report its load, and a number
    could not become a range while the service runs.

    Args:
        service: Whose events are to tell the reasons.
        part: What to call it there, such as `router`.
    """
    rules = {
        "service": service,
        "part": part,
        "interval_s": autoscaling.interval_s,
        "target_utilization": autoscaling.target_utilization,
        "downscale_delay_s": autoscaling.downscale_delay_s,
    }
    with warnings.catch_warnings():
        # `metrics_interval_s` is deprecated in favour of environment variables that 2.60 does not read yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            metrics_interval_s=autoscaling.interval_s / REPORTS_PER_INTERVAL,
            look_back_period_s=autoscaling.interval_s,
            upscale_delay_s=0,  # Serve would apply its own delays to what the policy has decided
            downscale_delay_s=0,
            policy=AutoscalingPolicy(policy_function=POLICY, policy_kwargs=rules),
        )


class UtilizationPolicy:
    """Decides every `interval_s` by `cluster.scaling`. Made once for each deployment, in Serve's controller.

    Args:
        service: Whose controller is told the reasons.
        part: What to call the deployment in them.
        interval_s, target_utilization, downscale_delay_s: As in the service file.
    """

    def __init__(
        self, service: str, part: str, interval_s: float, target_utilization: float, downscale_delay_s: float
    ) -> None:
        self._service = service
        self._part = part
        self._interval_s = interval_s
        self._target_utilization = target_utilization
        self._downscale_delay_s = downscale_delay_s
        self._due_s = float("-inf")
        self._history: History = ()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas (those that start included), and no state: it is kept here."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return context.target_num_replicas, {}
        self._due_s = now_s + self._interval_s
        rules = Rules(
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
            self._target_utilization,
            self._downscale_delay_s,
        )
        loads = _loads(context.aggregated_metrics or {})
        decision = decide(self._part, context.target_num_replicas, loads, rules, self._history, now_s)
        self._history = decision.history
        if decision.reason:
            logger.info("%s", decision.reason)
            # In a thread: Serve's controller serves every application, and finding an actor may take its time.
            threading.Thread(target=_tell, args=(self._service, decision.reason), daemon=True).start()
        return decision.num_replicas, {}


def _tell(service: str, reason: str) -> None:
    """Notes a decision among the service's events, if its controller is there."""
    if not ray.is_initialized():
        return
    try:
        controller: Any = ray.get_actor(controller_name(service), NAMESPACE)
        controller.note.remote(reason)
    except (ValueError, RayError) as error:
        logger.info("the controller of %s was not told: %s", service, error)


def _loads(stats: Mapping[str, Mapping[Any, float]]) -> list[Load]:
    """The loads of the replicas that run and have reported; before the first report a replica is absent."""
    queued = stats.get("queued", {})
    return [Load(busy, queued.get(replica, 0.0)) for replica, busy in stats.get("utilization", {}).items()]
