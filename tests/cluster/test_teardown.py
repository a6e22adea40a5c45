"""The end of a service whose controller is slow to leave."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster import teardown


class Cluster:
    """A controller that is told to leave, does not, and reserves something before it is killed."""

    def __init__(self, survives: bool = False) -> None:
        self.controller = SimpleNamespace(exit=SimpleNamespace(remote=lambda: None))
        self.there = True
        self.groups = ["first"]
        self._survives = survives
        self.kills = 0

    def kill(self, controller: Any, no_restart: bool) -> None:
        assert controller is self.controller
        assert no_restart
        self.kills += 1
        self.groups.append("late")
        self.there = self._survives

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(teardown, "EXIT_TIMEOUT_S", 0.1)
        monkeypatch.setattr(teardown, "find_controller", lambda name: self.controller)
        monkeypatch.setattr(teardown, "ask_controller", lambda name, question, deadline: [])
        monkeypatch.setattr(teardown, "_actor_names", lambda: ["svc/controller"] if self.there else [])
        monkeypatch.setattr(teardown, "release_all", lambda name: self.groups.clear())
        monkeypatch.setattr(teardown.ray, "kill", self.kill)
        for name in ("_delete_apps", "kill_experts", "forget_data_plane_key", "forget_service"):
            monkeypatch.setattr(teardown, name, lambda *args, **options: None)


def test_what_a_slow_controller_reserves_last_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.install(monkeypatch)
    teardown.stop_service("svc")
    assert (cluster.kills, cluster.there, cluster.groups) == (1, False, [])


def test_one_that_cannot_be_killed_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(survives=True)
    cluster.install(monkeypatch)
    teardown.stop_service("svc")
    assert cluster.kills == 1
