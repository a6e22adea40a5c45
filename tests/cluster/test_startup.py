"""Waiting for a controller that starts; it is stood in for."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from cluster import startup as startup_module
from cluster.startup import _wait_controller  # pyright: ignore[reportPrivateUsage]

CONTROLLER: Any = SimpleNamespace(status=SimpleNamespace(remote=lambda: None))


def test_a_controller_may_start_for_longer_than_one_call_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[dict[str, str] | None] = iter([None, None, {"name": "one"}])

    def get(answer: object, timeout: float) -> object:
        found = next(answers)
        if found is None:
            raise GetTimeoutError
        return found

    monkeypatch.setattr(ray, "get", get)
    _wait_controller(CONTROLLER)
    assert next(answers, None) is None, "it was asked until it answered"


def test_a_controller_that_never_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: object, timeout: float) -> object:
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(startup_module, "CONTROLLER_STARTS_S", 0.2)
    with pytest.raises(RuntimeError, match="controller did not answer within 0.2 s"):
        _wait_controller(CONTROLLER)


def test_a_controller_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: object, timeout: float) -> object:
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(RuntimeError, match="controller is gone: "):
        _wait_controller(CONTROLLER)
