"""Changes a running service as `manta apply` does."""

import threading
from typing import Any

from cluster.lifecycle import Plan, apply, plan
from tests.integration.ray_service import RayService, spec_of, wait_until

CHANGE_S = 120.0


class Change:
    """A change that is made in a thread of its own."""

    def __init__(self, planned: Plan) -> None:
        self._planned = planned
        self.error: BaseException | None = None
        self.stages: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> None:
        """Waits until it has been made.

        Raises:
            RuntimeError: It was rolled back.
        """
        self._thread.join(CHANGE_S)
        assert not self._thread.is_alive(), f"not within {CHANGE_S} s: the change is made ({self.stages})"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            apply(self._planned, "auto", lambda progress: self.stages.append(progress.stage))
        except BaseException as error:
            self.error = error


class Changes:
    """Changes one service.

    Args:
        settings: How its file differs from `spec_of`'s defaults.
    """

    def __init__(self, service: RayService, directory: Any, port: int, **settings: dict[str, Any]) -> None:
        self._service = service
        self._directory = directory
        self._port = port
        self._settings = settings

    def plan(self, **sections: dict[str, Any]) -> Plan:
        """Plans to make the service what the file with these sections says."""
        return plan(spec_of(self._directory, self._port, self._service.name, **{**self._settings, **sections}), "auto")

    def make(self, **sections: dict[str, Any]) -> None:
        """Makes it so, and waits until it is."""
        planned = self.plan(**sections)
        assert planned.changes, "nothing to change"
        assert not planned.refused, planned.refused
        self.start(planned).wait()

    def start(self, planned: Plan) -> Change:
        """Starts to make it so; returns once the controller is at it."""
        change = Change(planned)

        def under_way() -> bool:
            resize = self._service.status()["resize"]
            return change.error is not None or (resize is not None and resize["version"] == planned.wanted.version)

        wait_until(under_way, CHANGE_S, "the controller starts the change", self._service.show)
        return change

    def wait_settled(self) -> None:
        """Waits until no change is under way."""

        def settled() -> bool:
            resize = self._service.status()["resize"]
            return resize is None or resize["state"] != "running"

        wait_until(settled, CHANGE_S, "the change has ended", self._service.show)
