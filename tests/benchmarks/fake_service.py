"""A service of real processes that sleep. What dies is replaced a moment later, as `cluster.lifecycle.status` tells."""

import subprocess
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

HOST = "here"
NUMBERS = {"expert": 2, "router": 2, "node": 2, "gateway": 2, "controller": 1}


@dataclass
class Sleeper:
    """One process; `dead_since_s` and `replaced` once it has been found dead."""

    kind: str
    process: subprocess.Popen[bytes]
    dead_since_s: float | None = None
    replaced: bool = False

    def entry(self) -> dict[str, Any]:
        state = "serving" if self.dead_since_s is None else "replacing"
        return {"pid": self.process.pid, "host": HOST, "state": state}


class FakeService:
    """Two of each part and a controller.

    Args:
        heals_s: How long after a death its replacement serves.
        forgets_s: How much longer the dead one is listed beside it.
    """

    def __init__(self, heals_s: float = 0.3, forgets_s: float = 0.0) -> None:
        self.heals_s = heals_s
        self.forgets_s = forgets_s
        self.silent = False
        self._sleepers: list[Sleeper] = []

    def status(self) -> dict[str, Any]:
        if self.silent:
            raise RuntimeError("the controller does not answer")
        for sleeper in list(self._sleepers):
            self._mend(sleeper, time.monotonic())
        return {
            "experts": [{"shard": 0, "replicas": self._entries("expert")}],
            "routers": self._entries("router"),
            "attention_nodes": self._entries("node"),
            "gateways": self._entries("gateway"),
            "controller": self._entries("controller")[-1],
        }

    def pids(self, kind: str) -> set[int]:
        """The processes of one kind that run."""
        return {one.process.pid for one in self._sleepers if one.kind == kind and one.process.poll() is None}

    def _entries(self, kind: str) -> list[dict[str, Any]]:
        return [sleeper.entry() for sleeper in self._sleepers if sleeper.kind == kind]

    def _mend(self, sleeper: Sleeper, now_s: float) -> None:
        if sleeper.process.poll() is None:
            return
        sleeper.dead_since_s = sleeper.dead_since_s or now_s
        dead_s = now_s - sleeper.dead_since_s
        if dead_s >= self.heals_s and not sleeper.replaced:
            sleeper.replaced = True
            self._start(sleeper.kind)
        if dead_s >= self.heals_s + self.forgets_s:
            self._sleepers.remove(sleeper)

    def _start(self, kind: str) -> None:
        self._sleepers.append(Sleeper(kind, subprocess.Popen(["sleep", "60"])))

    def __enter__(self) -> Self:
        for kind, number in NUMBERS.items():
            for _ in range(number):
                self._start(kind)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sleeper in self._sleepers:
            sleeper.process.kill()
            sleeper.process.wait(10)
