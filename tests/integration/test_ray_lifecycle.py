"""Starting, refusing, stopping and being orphaned: what stays on the cluster, and what must not."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from cluster.app import build
from cluster.lifecycle import down
from cluster.lifecycle import serve as start_service
from cluster.membership import join_service
from cluster.names import NAMESPACE, controller_name
from cluster.resolve import resolve
from cluster.room import Room
from tests.integration.ray_fixtures import MAX_CONTEXT
from tests.integration.ray_service import (
    SHARE,
    RayService,
    alive,
    complete,
    leftovers,
    nothing_of,
    running_service,
    spec_of,
    wait_until,
)
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

GONE_S = 40.0


@pytest.fixture
def damaged(checkpoint: tuple[Path, Oracle], tmp_path: Path) -> Path:
    """A checkpoint whose weights were cut off."""
    directory = tmp_path / "damaged"
    shutil.copytree(checkpoint[0], directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return directory


def start(directory: Path, port: int, name: str, **sections: dict[str, Any]) -> None:
    start_service(spec_of(directory, port, name, **sections), "auto", lambda progress: None).stop()


def test_a_bad_checkpoint_fails_with_its_reason_and_leaves_nothing(
    alpha: RayService, ray_port: int, damaged: Path
) -> None:
    before = alpha.status()
    with pytest.raises(RuntimeError) as caught:
        start(damaged, ray_port, "damaged")
    message = str(caught.value)
    assert "model.safetensors" in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert nothing_of("damaged"), leftovers("damaged")
    after = alpha.status()
    assert [after[part] for part in ("controller",)] == [before[part] for part in ("controller",)]
    assert complete(alpha.client(), [5, 6], 2).finish_reason == "length"


@pytest.mark.full
def test_a_checkpoint_whose_attention_is_missing_fails_too(
    ray_port: int, checkpoint: tuple[Path, Oracle], tmp_path: Path
) -> None:
    """The experts load; the error comes out of a Serve replica."""
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "headless"
    shutil.copytree(checkpoint[0], directory)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"AttentionNode did not start: .*q_proj") as caught:
        start(directory, ray_port, "headless")
    assert "\n" not in str(caught.value)
    assert nothing_of("headless"), leftovers("headless")


def test_experts_that_fit_nowhere(ray_port: int, checkpoint: tuple[Path, Oracle]) -> None:
    begun_s = time.monotonic()
    with pytest.raises(RuntimeError, match=r"placed within 2 s .*load_timeout_s"):
        start(checkpoint[0], ray_port, "huge", experts={"num_cpus": 99}, limits={"load_timeout_s": 2})
    assert time.monotonic() - begun_s < 30
    assert nothing_of("huge"), leftovers("huge")


def test_what_is_refused_before_anything_starts(
    alpha: RayService, ray_port: int, checkpoint: tuple[Path, Oracle]
) -> None:
    directory, _ = checkpoint
    with pytest.raises(ValueError, match="alpha .*runs on this Ray cluster already"):
        start(directory, ray_port, "alpha")
    with pytest.raises(ValueError, match=f"listens on 127.0.0.1:{ray_port}"):
        start(directory, ray_port + 1, "elsewhere")
    with pytest.raises(ValueError, match=r"route_prefix.*alpha"):
        start(directory, ray_port, "same-route", api={"route_prefix": "/"})
    for name in ("elsewhere", "same-route"):
        assert nothing_of(name), leftovers(name)
    assert complete(alpha.client(), [5, 6], 2).finish_reason == "length"


def start_by_hand(directory: Path, port: int, **fields: object) -> RayService:
    """A service that is started without the command line: `serve.run` of what the builder returns."""
    args = {"model": str(directory), "name": "built", "attention.num_cpus": SHARE, "experts.num_cpus": SHARE, **fields}
    serve.run(build(args), name="by-hand", route_prefix="/built")
    service = RayService("built", f"http://127.0.0.1:{port}/built")
    wait_until(lambda: service.get("/health").status_code == 200, 60, "the built service is healthy", service.show)
    return service


def processes(service: RayService) -> list[int]:
    found = service.status()
    pids = [one["pid"] for shard in found["experts"] for one in shard["replicas"]]
    return pids + [one["pid"] for part in ("routers", "attention_nodes", "gateways") for one in found[part]]


def test_down_ends_one_service_and_leaves_the_other(
    alpha: RayService, ray_port: int, checkpoint: tuple[Path, Oracle]
) -> None:
    """It finds the Serve application too, though that has another name."""
    before = alpha.status()
    service = start_by_hand(checkpoint[0], ray_port)
    pids = processes(service)
    assert service.get("/v1/models").json()["data"][0]["max_model_len"] == MAX_CONTEXT
    with pytest.raises(ValueError, match="alpha, built"):
        down(None, "auto")
    down("built", "auto")
    assert nothing_of("built"), leftovers("built")
    assert "by-hand" not in serve.status().applications
    wait_until(lambda: not any(map(alive, pids)), GONE_S, "its processes end", lambda: list(map(alive, pids)))
    after = alpha.status()
    assert after["controller"] == before["controller"]
    assert processes(alpha) == [one for one in processes(alpha) if alive(one)]
    assert complete(alpha.client(), [5, 6], 2).finish_reason == "length"
    with pytest.raises(ValueError, match="built was given"):
        down("built", "auto")


@pytest.mark.full
def test_what_is_detached_goes_after_the_application(
    alpha: RayService, ray_port: int, checkpoint: tuple[Path, Oracle]
) -> None:
    start_by_hand(checkpoint[0], ray_port, **{"limits.orphan_timeout_s": 3})
    serve.delete("by-hand")
    wait_until(lambda: nothing_of("built"), GONE_S, "the controller ends the experts", lambda: leftovers("built"))
    assert complete(alpha.client(), [5, 6], 2).finish_reason == "length"


def test_experts_leave_by_themselves(ray_port: int, checkpoint: tuple[Path, Oracle]) -> None:
    """Neither gateways nor a controller, which is gone for good: nobody is left who could end them."""
    limits = {"orphan_timeout_s": 3}
    with running_service(checkpoint[0], ray_port, "orphans", limits=limits) as service:
        pids = [one["pid"] for shard in service.status()["experts"] for one in shard["replicas"]]
        serve.delete("orphans")
        ray.kill(ray.get_actor(controller_name("orphans"), NAMESPACE), no_restart=True)
        assert all(map(alive, pids))
        wait_until(lambda: not any(map(alive, pids)), GONE_S, "the experts leave", lambda: leftovers("orphans"))
    assert nothing_of("orphans"), leftovers("orphans")


def test_leaving_a_service_that_is_gone_does_nothing(ray_port: int, checkpoint: tuple[Path, Oracle]) -> None:
    service = resolve(spec_of(checkpoint[0], ray_port, "gone"), Room((2.0,), own=True))
    membership = join_service(service)()
    membership.leave()
    membership.leave()
    assert nothing_of("gone"), "it started a controller only to tell it that it leaves"
