"""Parts grow and shrink with their load: Ray Serve asks our policy and does what it says; so does the controller."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from tests.faults.changing import Changes
from tests.integration.ray_service import RayService, complete, running_service, wait_until
from tests.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.cluster

APP = "autoscaled"
TIMEOUT_S = 60.0


@pytest.mark.full
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
            deployment: Any = serve.status().applications[APP].deployments["Recorder"]
            if deployment.replica_states.get("RUNNING", 0) == num_replicas:
                return
            assert time.monotonic() < deadline_s, deployment
            time.sleep(0.1)

    busy.write_text("1.0")
    autoscaling = AutoscalingSpec(interval_s=1, target_utilization=0.7, downscale_delay_s=2)
    scaled = Recorder.options(
        autoscaling_config=autoscaling_config("no such service", "recorder", Replicas(min=1, max=2), autoscaling),
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


@pytest.fixture
def skewed(tmp_path: Path, seed: int) -> Path:
    """A checkpoint whose rows all go to experts 0 and 1: their gates are opposite, those of the others zero."""
    model = make_checkpoint(tmp_path / "skewed", seed=seed, num_experts=4, top_k=1)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            with torch.no_grad():
                parameter[1] = -parameter[0]
                parameter[2:] = 0
    model.save_pretrained(tmp_path / "skewed", save_original_format=True)
    return tmp_path / "skewed"


def load_until(service: RayService, done: threading.Event) -> None:
    """One request after the other, with pauses: what the load asks for has to start on the same cores."""
    client = service.client()
    while not done.wait(0.3):
        complete(client, [5, 6, 7], 60)


def test_a_skewed_load_replicates_the_hot_shard_and_no_other(ray_port: int, skewed: Path) -> None:
    experts = {"replicas": {"min": 1, "max": 2}}
    autoscaling = {"interval_s": 0.5, "target_utilization": 0.005, "downscale_delay_s": 3}
    sections = {"experts": experts, "autoscaling": autoscaling, "router": {"replicas": {"min": 1, "max": 2}}}
    with running_service(skewed, ray_port, "skewed", **sections) as service:

        def reasons(part: str) -> list[str]:
            texts = [str(event["text"]) for event in service.status()["events"]]
            return [text for text in texts if text.startswith(part) and "→" in text]

        client, done = service.client(), threading.Event()
        thread = threading.Thread(target=load_until, args=(service, done))
        thread.start()
        try:
            wait_until(lambda: len(service.replicas(0)) == 2, TIMEOUT_S, "the hot shard grows", service.show)
            assert len(service.replicas(1)) == 1
            assert complete(client, [5, 6, 7], 200).finish_reason == "length"
            wait_until(lambda: reasons("routers: "), TIMEOUT_S, "Serve's controller tells why", service.show)
        finally:
            done.set()
            thread.join()
        wait_until(lambda: len(service.replicas(0)) == 1, TIMEOUT_S, "it shrinks again", service.show)
        assert [len(reasons("shard 0: ")), len(reasons("shard 1: "))] == [2, 0], service.show()


@pytest.mark.full
def test_a_service_whose_load_asks_for_more_than_there_is_room_for_can_be_changed(ray_port: int, skewed: Path) -> None:
    free = ray.available_resources().get("CPU", 0.0)  # services of other tests have some of the two that there are
    assert free > 1, free
    sections = {
        "autoscaling": {"interval_s": 0.5, "target_utilization": 0.005, "downscale_delay_s": 3},
        "attention": {"num_cpus": round(free - 0.45, 2), "replicas": {"min": 1, "max": 2}},  # a second has no room
        "router": {"replicas": {"min": 1, "max": 2}},
    }
    with running_service(skewed, ray_port, "crowded", **sections) as service:
        changes, done = Changes(service, skewed, ray_port, **sections), threading.Event()
        thread = threading.Thread(target=load_until, args=(service, done))
        thread.start()
        try:
            wait_until(lambda: "attention nodes: " in service.show(), TIMEOUT_S, "the load asks for more", service.show)
            changes.make(limits={"drain_timeout_s": 4}, router={"replicas": {"min": 1, "max": 3}})
            wait_until(lambda: len(service.pids("routers")) > 1, 2 * TIMEOUT_S, "the range is open", service.show)
            assert len(service.pids("attention_nodes")) == 1
        finally:
            done.set()
            thread.join()
