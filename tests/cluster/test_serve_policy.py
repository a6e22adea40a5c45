"""The policy in Ray Serve's own machinery: what its controller does with it, without a Ray cluster."""

import time
from typing import Any, ClassVar

import pytest
from ray.serve._private import autoscaling_state
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import DeploymentID, ReplicaID, ReplicaMetricReport, TimeStampedValue
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.config import AutoscalingConfig

from cluster.serve_policy import UtilizationPolicy, autoscaling_config
from cluster.spec import AutoscalingSpec, Replicas
from router.deployment import RouterReplica

# Serve's own warning about its own field, see `autoscaling_config`.
pytestmark = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")

ROUTER = DeploymentID("RouterReplica", "manta")
SPEC = AutoscalingSpec(interval_s=5, target_utilization=0.5, downscale_delay_s=60)


def config(least: int = 1, most: int = 4) -> AutoscalingConfig:
    return autoscaling_config("manta", "router", Replicas(min=least, max=most), SPEC)


class ServeController:
    """What Serve's controller keeps of one deployment, and its loop's turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now_s)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        gauge = type("Gauge", (), {"set": lambda self, *args, **kwargs: None})  # Ray's own would start Ray
        monkeypatch.setattr(autoscaling_state.metrics, "Gauge", lambda *args, **kwargs: gauge())
        self.state = DeploymentAutoscalingState(ROUTER)
        self.target = self.configure(config())

    def configure(self, autoscaling: AutoscalingConfig) -> int:
        # As the wire does it: the policy arrives pickled.
        sent = DeploymentConfig(autoscaling_config=autoscaling).to_proto_bytes()
        info = DeploymentInfo(
            deployment_config=DeploymentConfig.from_proto_bytes(sent),
            replica_config=ReplicaConfig.create(RouterReplica.func_or_class),
            start_time_ms=0,
            deployer_job_id="",
        )
        return self.state.register(info, 0)

    def turn(self, *stats: dict[str, float] | None) -> int:
        """A tenth of a second and a decision; each replica that runs has reported these stats, or nothing (None)."""
        self.now_s += 0.1
        replicas = [ReplicaID(str(number), ROUTER) for number in range(len(stats))]
        self.state.update_running_replica_ids(replicas)
        for replica, values in zip(replicas, stats, strict=True):
            if values is not None:
                series = {name: [TimeStampedValue(self.now_s - 0.05, value)] for name, value in values.items()}
                self.state.record_request_metrics_for_replica(ReplicaMetricReport(replica, series, self.now_s))
        self.target = self.state.get_decision_num_replicas(self.target)
        return self.target

    def turns(self, seconds: float, *stats: dict[str, float] | None) -> int:
        for _ in range(round(seconds * 10)):
            self.turn(*stats)
        return self.target


@pytest.fixture
def serve_controller(monkeypatch: pytest.MonkeyPatch) -> ServeController:
    return ServeController(monkeypatch)


def stats(utilization: float, queued: float = 0.0) -> dict[str, float]:
    return {"utilization": utilization, "queued": queued}


def test_a_fixed_number_is_a_range_too() -> None:
    config = autoscaling_config("manta", "router", Replicas(min=2, max=2), SPEC)
    assert (config.min_replicas, config.max_replicas) == (2, 2)


def test_serve_takes_the_configuration_in_place_of_a_number() -> None:
    scaled = RouterReplica.options(num_replicas=None, autoscaling_config=config(2, 6))
    made = scaled._deployment_config.autoscaling_config
    assert (made.min_replicas, made.max_replicas, made.initial_replicas) == (2, 6, None)
    assert RouterReplica.options(num_replicas=3, autoscaling_config=None).num_replicas == 3


def test_it_starts_with_the_fewest_and_stays_while_nothing_is_known(serve_controller: ServeController) -> None:
    assert serve_controller.target == 1
    assert serve_controller.turns(20, None) == 1


def test_a_busy_deployment_grows_and_decides_once_an_interval(serve_controller: ServeController) -> None:
    serve_controller.turn(stats(0.4))
    assert serve_controller.turns(4.7, stats(1.0)) == 1
    assert serve_controller.turns(0.5, stats(1.0)) == 2
    assert serve_controller.turns(4.5, stats(1.0), stats(0.8)) == 2
    assert serve_controller.turns(1, stats(1.0), stats(0.8)) == 4
    assert serve_controller.turns(30, *[stats(1.0, queued=9.0)] * 4) == 4


def test_what_was_asked_for_and_does_not_run_yet_counts(serve_controller: ServeController) -> None:
    assert serve_controller.turns(60, stats(0.9)) == 2


def test_a_quiet_deployment_shrinks_after_the_delay(serve_controller: ServeController) -> None:
    serve_controller.turns(10, *[stats(0.9)] * 2)
    assert serve_controller.target == 4
    assert serve_controller.turns(50, *[stats(0.1)] * 4) == 4
    assert serve_controller.turns(20, *[stats(0.1)] * 4) == 1


def test_new_bounds_hold_at_once(serve_controller: ServeController) -> None:
    assert serve_controller.configure(config(3, 4)) == 3


def test_a_queue_counts_and_a_replica_that_has_not_reported_does_not() -> None:
    class Context:
        target_num_replicas = 3
        capacity_adjusted_min_replicas = 1
        capacity_adjusted_max_replicas = 20
        aggregated_metrics: ClassVar = {"utilization": {"a": 0.5, "b": 0.25}, "queued": {"a": 1.5}}

    policy: Any = UtilizationPolicy("manta", "router", 5, 0.5, 60)
    assert policy(Context) == (5, {})
