"""What is counted, how it adds up, and that Prometheus can read it."""

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.exposition import merge_and_render
from serving.fake import FakeGenerator
from serving.generator import GenerationError
from serving.metrics import GatewayMetrics, NodeSnapshot, SequenceTimer
from tests.serving.conftest import MODEL, Serve

NODES: list[NodeSnapshot] = [
    {"running": 3, "waiting": 1, "cache_used_tokens": 10, "cache_total_tokens": 100, "preemptions_total": 2},
    {"running": 4, "waiting": 0, "cache_used_tokens": 80, "cache_total_tokens": 200, "preemptions_total": 1},
]


def parse(text: str) -> dict[tuple[str, str], float]:
    """(sample name, its labels but model_name as JSON) -> value."""
    values: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == MODEL
            values[sample.name, json.dumps(labels) if labels else ""] = sample.value
    return values


def test_two_gateways_and_two_nodes_add_up() -> None:
    metrics = GatewayMetrics()
    timer = SequenceTimer(metrics, num_prompt=7, arrival_s=100.0)
    timer.tokens(1, 100.5, queue_s=0.2)
    timer.tokens(4, 100.9)
    timer.finished("stop", 101.0)
    timer.aborted()
    metrics.failures["queue_full"] += 1
    metrics.degraded_requests += 1
    snapshot = json.loads(json.dumps(metrics.snapshot()))
    values = parse(merge_and_render([snapshot, snapshot, *NODES], MODEL))
    assert values["manta_num_requests_running", ""] == 7
    assert values["manta_num_requests_waiting", ""] == 1
    assert values["manta_kv_cache_usage_perc", ""] == pytest.approx(0.3)
    assert values["manta_num_preemptions_total", ""] == 3
    assert values["manta_prompt_tokens_total", ""] == 14
    assert values["manta_generation_tokens_total", ""] == 10
    assert values["manta_request_success_total", '{"finished_reason": "stop"}'] == 2
    assert values["manta_request_failure_total", '{"code": "queue_full"}'] == 2
    assert values["manta_degraded_requests_total", ""] == 2
    assert values["manta_time_to_first_token_seconds_count", ""] == 2
    assert values["manta_time_to_first_token_seconds_sum", ""] == pytest.approx(1.0)
    assert values["manta_inter_token_latency_seconds_count", ""] == 8
    assert values["manta_inter_token_latency_seconds_sum", ""] == pytest.approx(0.8)
    assert values["manta_e2e_request_latency_seconds_sum", ""] == pytest.approx(2.0)
    assert values["manta_request_queue_time_seconds_sum", ""] == pytest.approx(0.4)
    assert values["manta_time_to_first_token_seconds_bucket", '{"le": "0.5"}'] == 2
    assert values["manta_time_to_first_token_seconds_bucket", '{"le": "0.25"}'] == 0
    assert values["manta_time_to_first_token_seconds_bucket", '{"le": "+Inf"}'] == 2


def test_nothing_yet_is_readable() -> None:
    values = parse(merge_and_render([GatewayMetrics().snapshot()], MODEL))
    assert values["manta_kv_cache_usage_perc", ""] == 0
    assert values["manta_generation_tokens_total", ""] == 0
    assert values["manta_degraded_requests_total", ""] == 0


def test_the_endpoint_counts_what_was_served(serve: Serve) -> None:
    served = serve(FakeGenerator(snapshots=[*NODES, GatewayMetrics(generation_tokens=1000).snapshot()]))
    client = served.client()
    client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=4, n=2)
    list(client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=3, stream=True))
    httpx.post(served.url + "/v1/completions", json={"model": "other", "prompt": "x"})
    response = httpx.get(served.url + "/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    values = parse(response.text)
    assert values["manta_num_requests_running", ""] == 7
    assert values["manta_generation_tokens_total", ""] == 1011
    assert values["manta_prompt_tokens_total", ""] == 6
    assert values["manta_request_success_total", '{"finished_reason": "length"}'] == 3
    assert values["manta_request_failure_total", '{"code": "model_not_found"}'] == 1
    assert values["manta_inter_token_latency_seconds_count", ""] == 8


def test_requests_with_missing_experts_are_counted_once_however_many_sequences_they_have(serve: Serve) -> None:
    served = serve(FakeGenerator())
    client = served.client()
    for missing in ({}, {1: [3], 2: [2]}, {}):
        served.generator.missing_experts = missing
        client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=2, n=3)
    served.generator.missing_experts = {1: [1]}
    list(client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=2, stream=True))
    served.generator.failures = {2: GenerationError("expert_unavailable", "gone")}
    assert httpx.post(served.url + "/v1/completions", json={"prompt": [5], "max_tokens": 3}).status_code == 503
    values = parse(httpx.get(served.url + "/metrics").text)
    assert values["manta_degraded_requests_total", ""] == 3


def test_a_fleet_that_cannot_be_asked_is_503(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(FakeGenerator())

    async def fail() -> list[NodeSnapshot]:
        raise GenerationError("internal", "x")

    monkeypatch.setattr(served.generator, "fleet_metrics", fail)
    assert httpx.get(served.url + "/metrics").status_code == 503
