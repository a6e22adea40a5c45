"""Ray Serve asks our policy, and does what it says."""

import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cluster,
    # Serve's own warning about its own field, see `cluster.serve_policy.autoscaling_config`.
    pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning"),
]

APP = "autoscaled"
TIMEOUT_S = 60.0


def test_replicas_follow_the_stats_that_they_record(ray_port: int, tmp_path: Path) -> None:
    from ray import serve

    from cluster.ingress import start_serve
    from cluster.serve_policy import autoscaling_config
    from cluster.spec import AutoscalingSpec, Replicas, spec_for_model

    busy = tmp_path / "busy"

    @serve.deployment
    class Recorder:
        """As busy as a file says."""

        def record_autoscaling_stats(self) -> dict[str, float]:
            return {"utilization": float(busy.read_text()), "queued": 0.0}

    def wait_for(num_replicas: int) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            deployment = serve.status().applications[APP].deployments["Recorder"]
            if deployment.replica_states.get("RUNNING", 0) == num_replicas:
                return
            assert time.monotonic() < deadline_s, deployment
            time.sleep(0.1)

    busy.write_text("1.0")
    autoscaling = AutoscalingSpec(interval_s=1, target_utilization=0.7, downscale_delay_s=2)
    scaled = Recorder.options(
        autoscaling_config=autoscaling_config("recorder", Replicas(min=1, max=2), autoscaling),
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=1,
        graceful_shutdown_wait_loop_s=0.1,
    )
    start_serve(spec_for_model("demo", {"api.port": ray_port}))
    try:
        serve.run(scaled.bind(), name=APP, route_prefix=None)
        wait_for(2)
        busy.write_text("0.1")
        wait_for(1)
    finally:
        serve.delete(APP)
