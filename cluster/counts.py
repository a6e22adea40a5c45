"""Sums of what gateways and attention nodes have counted: counters and histograms, never gauges. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from transport.membership import Role, Snapshot

OF_NODES = "preemptions_total"  # the only thing that a node counts; all else it tells is how it is at the moment
BOUNDS = "bounds_s"  # of a histogram: the same everywhere
Counts = Mapping[Role, Snapshot]  # what all gateways, and all nodes, have counted together


def counts_of(role: Role, snapshot: Snapshot) -> Counts:
    """Returns what one member has counted."""
    if role == "gateway":
        return {role: snapshot}
    return {role: {OF_NODES: snapshot[OF_NODES]}} if OF_NODES in snapshot else {}


def sum_of(counts: Iterable[Counts]) -> Counts:
    """Returns the sum; empty if there is nothing to add up."""
    total: dict[str, Any] = {}
    for each in counts:
        total = _added(total, each)
    return total  # pyright: ignore[reportReturnType]


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping):
        names = dict.fromkeys([*first, *second])
        return {name: _added_by_name(name, first, second) for name in names}
    if isinstance(first, list):
        return [ours + theirs for ours, theirs in zip(first, second, strict=True)]
    return first + second


def _added_by_name(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Any:
    if name not in first or name not in second:
        return first[name] if name in first else second[name]
    return first[name] if name == BOUNDS else _added(first[name], second[name])
