"""The sum over all gateways and attention nodes, in Prometheus' text format; series are vLLM's under `manta_`."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.metrics import HISTOGRAMS, GatewaySnapshot, HistogramSnapshot, MetricsSnapshot, NodeSnapshot

PREFIX = "manta_"


class NodeCounts(TypedDict):
    """What nodes that are gone had counted; a node that lives has gauges as well."""

    preemptions_total: int


def merge_and_render(snapshots: Sequence[MetricsSnapshot | NodeCounts], model_name: str) -> str:
    """Sums what all gateways and nodes report and renders it in Prometheus' text format (version 0.0.4).

    Args:
        snapshots: Of those that live, and what those that are gone had counted.
    """
    gateways: list[GatewaySnapshot] = []
    nodes: list[NodeSnapshot | NodeCounts] = []
    for snapshot in snapshots:
        if "preemptions_total" in snapshot:
            nodes.append(snapshot)
        else:
            gateways.append(snapshot)
    registry = CollectorRegistry()
    registry.register(_Families([*_node_families(nodes, model_name), *_gateway_families(gateways, model_name)]))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _node_families(nodes: Sequence[NodeSnapshot | NodeCounts], model_name: str) -> Iterable[Metric]:
    living = [node for node in nodes if "running" in node]
    total = sum(node["cache_total_tokens"] for node in living)
    used = sum(node["cache_used_tokens"] for node in living)
    gauges = (
        ("num_requests_running", "Sequences being worked on.", sum(node["running"] for node in living)),
        ("num_requests_waiting", "Sequences waiting for admission.", sum(node["waiting"] for node in living)),
        ("kv_cache_usage_perc", "Used share of the rolling caches; 1 is full.", used / total if total else 0.0),
        ("num_attention_nodes", "Attention nodes that answered this scrape.", len(living)),
    )
    for name, documentation, value in gauges:
        gauge = GaugeMetricFamily(PREFIX + name, documentation, labels=["model_name"])
        gauge.add_metric([model_name], value)
        yield gauge
    preemptions = sum(node["preemptions_total"] for node in nodes)
    yield _counter("num_preemptions", "Sequences put back into the queue to free cache.", model_name, preemptions)


def _gateway_families(gateways: Sequence[GatewaySnapshot], model_name: str) -> Iterable[Metric]:
    prompt_tokens = sum(gateway["prompt_tokens"] for gateway in gateways)
    generation_tokens = sum(gateway["generation_tokens"] for gateway in gateways)
    yield _counter("prompt_tokens", "Prompt tokens processed.", model_name, prompt_tokens)
    yield _counter("generation_tokens", "Tokens generated.", model_name, generation_tokens)
    successes = _summed(gateway["successes"] for gateway in gateways)
    yield _labelled_counter("request_success", "Sequences that ended.", model_name, "finished_reason", successes)
    failures = _summed(gateway["failures"] for gateway in gateways)
    yield _labelled_counter("request_failure", "Requests answered with an error.", model_name, "code", failures)
    degraded = sum(gateway["degraded_requests"] for gateway in gateways)
    yield _counter("degraded_requests", "Requests for which experts were missing.", model_name, degraded)
    for name in HISTOGRAMS:
        yield _histogram(name, [gateway["histograms"][name] for gateway in gateways], model_name)


def _summed(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _counter(name: str, documentation: str, model_name: str, value: float) -> Metric:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=["model_name"])
    family.add_metric([model_name], value)
    return family


def _labelled_counter(name: str, documentation: str, model_name: str, label: str, values: Counter[str]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=["model_name", label])
    for label_value, value in sorted(values.items()):
        family.add_metric([model_name, label_value], value)
    return family


def _histogram(name: str, parts: Sequence[HistogramSnapshot], model_name: str) -> Metric:
    documentation, bounds_s = HISTOGRAMS[name]
    counts = [0] * (len(bounds_s) + 1)
    for part in parts:
        counts = [ours + theirs for ours, theirs in zip(counts, part["counts"], strict=True)]
    labels = [*(str(float(bound)) for bound in bounds_s), "+Inf"]
    family = HistogramMetricFamily(PREFIX + name, documentation, labels=["model_name"])
    buckets = list(zip(labels, itertools.accumulate(counts), strict=True))
    family.add_metric([model_name], buckets, sum(part["sum_s"] for part in parts))
    return family
