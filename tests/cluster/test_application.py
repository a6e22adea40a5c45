"""What is read from what Serve tells of its applications."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.application import wanted_by_serve


def deployment(service: str | None, status: str = "HEALTHY") -> dict[str, Any]:
    policy = {"policy_kwargs": {"service": service}} if service else None
    autoscaling = {"policy": policy} if policy else None
    return {"status": status, "deployment_config": {"autoscaling_config": autoscaling}}


@pytest.mark.parametrize(
    ("status", "deployments", "wanted"),
    [
        ("RUNNING", [deployment(None), deployment("one")], True),
        ("DEPLOYING", [deployment("one", "UPDATING")], True),
        ("UNHEALTHY", [deployment("one", "UNHEALTHY")], True),
        ("DEPLOY_FAILED", [deployment("one", "DEPLOY_FAILED"), deployment("one", "UNHEALTHY")], True),
        ("DEPLOY_FAILED", [deployment(None, "HEALTHY"), deployment("one", "DEPLOY_FAILED")], False),
        ("DELETING", [deployment("one")], False),
        ("RUNNING", [deployment("another"), deployment(None)], False),
    ],
)
def test_serve_wants_a_service_while_it_starts_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, status: str, deployments: list[dict[str, Any]], wanted: bool
) -> None:
    found = {"any name": {"status": status, "deployments": dict(enumerate(deployments))}}
    details = SimpleNamespace(remote=lambda: {"applications": found})
    serve = SimpleNamespace(get_serve_instance_details=details)
    monkeypatch.setattr("ray.get_actor", lambda name, namespace: serve)
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    assert wanted_by_serve("one") == wanted


def test_without_serve_nothing_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, namespace: str) -> None:
        raise ValueError(name)

    monkeypatch.setattr("ray.get_actor", none)
    assert not wanted_by_serve("one")
