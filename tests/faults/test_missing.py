"""Parts that cannot come back in time, because the weights that they would load are away: what clients are told."""

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cluster.lifecycle import apply, plan
from tests.faults.changing import Changes
from tests.faults.conftest import Files
from tests.faults.load import load
from tests.faults.parts import RECOVERY_S, processes, wait_replaced, wait_whole, wanted
from tests.integration.ray_fixtures import WINDOW
from tests.integration.ray_service import MODEL, RayService, complete, kill, running_service, spec_of, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

PROMPT = [5, 6, 7] * WINDOW
NUM_TOKENS = 8
LIMITS = {"recovery_timeout_s": 3}


@pytest.fixture(scope="module")
def fragile_running(ray_port: int, files: Files) -> Iterator[RayService]:
    with running_service(files.directory, ray_port, "fragile", limits=LIMITS) as running:
        yield running


@pytest.fixture
def fragile(fragile_running: RayService, files: Files) -> Iterator[RayService]:
    """A service of one of everything, whose requests do not wait for long."""
    wait_whole(fragile_running)
    yield fragile_running
    files.put_back()


def ask(service: RayService) -> Any:
    """One greedy completion, as plain data."""
    extra = {"return_token_ids": True, "ignore_eos": True}
    client: Any = service.client()
    return client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=NUM_TOKENS, temperature=0, extra_body=extra
    ).model_dump()


def check_unavailable(service: RayService) -> None:
    begun_s = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        ask(service)
    assert caught.value.status_code == 503
    assert caught.value.code == "expert_unavailable"
    assert time.monotonic() - begun_s > LIMITS["recovery_timeout_s"] - 1, "it was to wait first"


def check_served_again(service: RayService, oracle: Oracle, victim: int) -> None:
    wait_replaced(service, victim)
    answer = complete(service.client(), PROMPT, NUM_TOKENS)
    assert answer.finish_reason == "length"
    oracle.check_greedy(PROMPT, answer.token_ids)


def test_an_expert_stays_away(fragile: RayService, files: Files, oracle: Oracle) -> None:
    victim = fragile.replicas(1)[0]["pid"]
    files.take_away()
    kill(victim)
    check_unavailable(fragile)
    (away,) = next(shard for shard in fragile.status()["experts"] if shard["shard"] == 1)["replicas"]
    assert away["state"] != "serving"
    wait_until(lambda: "model.safetensors" in fragile.show(), RECOVERY_S, "its status says why", fragile.show)
    files.put_back()
    check_served_again(fragile, oracle, victim)


@pytest.mark.full
@pytest.mark.parametrize("part", ["routers", "attention_nodes"])
def test_the_router_or_the_node_stays_away(fragile: RayService, files: Files, oracle: Oracle, part: str) -> None:
    (victim,) = fragile.pids(part)
    files.take_away()
    kill(victim)
    check_unavailable(fragile)
    files.put_back()
    check_served_again(fragile, oracle, victim)


@pytest.mark.full
def test_experts_that_a_change_adds_cannot_be_loaded(
    fragile: RayService, files: Files, ray_port: int, oracle: Oracle, seed: int
) -> None:
    changes = Changes(fragile, files.directory, ray_port, limits=LIMITS)
    before, spec = processes(fragile), wanted(fragile)
    with load(fragile, oracle, seed, num_streams=2) as streams:
        files.take_away()
        with pytest.raises(RuntimeError, match=r"rolled back.*/1 does not come up: .*model\.safetensors"):
            changes.make(experts={"replicas": 2})
        streams.wait_flowing()
        files.put_back()
        wait_whole(fragile)
        assert (processes(fragile), wanted(fragile)) == (before, spec)
        changes.make(experts={"replicas": 2})
        changes.make()


@pytest.fixture(scope="module")
def degrading_running(fragile_running: RayService, ray_port: int, files: Files) -> RayService:
    spec = spec_of(files.directory, ray_port, "fragile", limits=LIMITS, experts={"on_missing": "degrade"})
    apply(plan(spec, "auto"), "auto", lambda progress: None)
    return fragile_running


def test_degraded_answers_name_the_missing_experts(
    degrading_running: RayService, fragile: RayService, files: Files, oracle: Oracle
) -> None:
    wait_whole(degrading_running)
    assert not ask(fragile).get("manta")
    victim = fragile.replicas(1)[0]["pid"]
    files.take_away()
    kill(victim)
    answer = ask(fragile)
    assert answer["manta"] == {"missing_experts": [2, 3]}
    assert len(answer["choices"][0]["token_ids"]) == NUM_TOKENS
    kill(fragile.replicas(0)[0]["pid"])  # now none is left
    check_unavailable(fragile)
    files.put_back()
    wait_whole(fragile)
    assert not ask(fragile).get("manta")
    check_served_again(fragile, oracle, victim)
