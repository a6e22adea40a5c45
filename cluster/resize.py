"""Makes a running service into what a changed file says, or leaves it as it was.

Make before break: what is added serves before anything leaves, so that going back means ending what was added.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from cluster.application import application_state, failed_deployments, hand_over
from cluster.causes import cause_of
from cluster.fleet import ExpertFleet
from cluster.keeper import ExpertKeeper
from cluster.layout import Layout, layout_of
from cluster.resolve import Service

POLL_S = 0.2
GRACE_S = 5.0  # beyond `limits.load_timeout_s`: a part that is late says itself what it waits for

LOADING, STARTING, LEAVING, ROLLING_BACK = (
    "loading the experts",
    "starting gateways, routers and attention nodes",
    "letting go of what leaves",
    "going back to the last good state",
)
OutcomeState = Literal["running", "done", "rolled back", "failed"]


@dataclass
class ResizeStatus:
    """What `manta apply` follows.

    Args:
        version: The version of the service that is being made.
        error: Why it was rolled back; empty otherwise.
        done: How much of the stage is done, out of `total` (0: nothing to count).
    """

    version: str
    state: OutcomeState = "running"
    stage: str = LOADING
    done: int = 0
    total: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, object]:
        """Returns it as plain data."""
        return asdict(self)


class Resize:
    """One change of a running service.

    Args:
        old: What runs: the last good state.
        new: What is to run.
        note: Notes an event (text, whether something failed).
    """

    def __init__(self, fleet: ExpertFleet, old: Service, new: Service, note: Callable[[str, bool], None]) -> None:
        self.status = ResizeStatus(new.version)
        self._fleet = fleet
        self._old = old
        self._new = new
        self._note = note
        self._added: list[ExpertKeeper] = []
        self._handed_over = False

    async def run(self) -> bool:
        """Makes the change; returns whether it holds. If not, everything is as before, and `status.error` says why."""
        try:
            await self._make()
        except Exception as error:
            self.status.error = cause_of(error)
            await self._roll_back()
            return False
        self._end("done")
        return True

    async def _make(self) -> None:
        layout = layout_of(self._new)
        counts = self._counts(layout)
        self._fleet.take_service(self._new)
        self._stage(LOADING)
        self._added = self._fleet.grow(layout, counts)
        timeout_s = self._new.spec.limits.load_timeout_s + GRACE_S
        await self._fleet.wait_serving(self._added, timeout_s, lambda done: self._count(done, len(self._added)))
        if _of_application(self._old) != _of_application(self._new):
            self._stage(STARTING)
            self._handed_over = True
            await self._exchange(self._new)
        self._stage(LEAVING)
        leaving = [*await self._fleet.use(layout), *self._fleet.beyond(counts)]
        await self._fleet.retire(leaving)

    def _counts(self, layout: Layout) -> dict[int, int]:
        """Returns how many replicas each shard is to have: a range keeps the number that the load has brought."""
        present = self._fleet.counts if layout.version == self._fleet.layout.version else {}
        return {
            shard.index: min(max(present.get(shard.index, 0), shard.replicas.min), shard.replicas.max)
            for shard in layout.shards
        }

    async def _exchange(self, service: Service) -> None:
        """Hands the application to Serve and waits until exactly its replicas run.

        Raises:
            RuntimeError: A replica failed to start.
            TimeoutError: They were not there within `limits.load_timeout_s`.
        """
        limits = service.spec.limits
        deadline_s = time.monotonic() + limits.load_timeout_s + limits.drain_timeout_s + GRACE_S
        # Until Serve takes it over, in its next turn, it tells why an earlier version failed: the one that is undone.
        forgiven = set(await asyncio.to_thread(failed_deployments, service.name))
        await asyncio.to_thread(hand_over, service)
        while True:
            await asyncio.sleep(POLL_S)
            forgiven &= (await asyncio.to_thread(failed_deployments, service.name)).keys()
            state = await asyncio.to_thread(application_state, service.spec, forgiven)
            self._count(state.serving, state.wanted)
            if state.settled:
                return
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"{state.serving} of {state.wanted} gateways, routers and attention nodes serve after "
                    f"{limits.load_timeout_s:g} s (limits.load_timeout_s); perhaps the cluster has no room for more"
                )

    async def _roll_back(self) -> None:
        self._note(f"the resize failed: {self.status.error}; going back", True)
        self._stage(ROLLING_BACK)
        self._fleet.take_service(self._old)
        try:
            if self._handed_over:
                await self._exchange(self._old)
        except Exception as error:
            self.status.error += f"; and going back failed: {cause_of(error)}"
            self._end("failed")
        else:
            self._end("rolled back")
        await self._fleet.retire(self._added)

    def _stage(self, stage: str) -> None:
        self.status.stage, self.status.done, self.status.total = stage, 0, 0

    def _count(self, done: int, total: int) -> None:
        self.status.done, self.status.total = done, total

    def _end(self, state: OutcomeState) -> None:
        self.status.state = state
        self._note(f"resize to version {self._new.version}: {state}", state != "done")


def _of_application(service: Service) -> tuple[object, ...]:
    """Returns what the Serve application is made from: if it is the same, Serve has nothing to do."""
    spec = service.spec
    return spec.model, spec.api, spec.attention, spec.router, spec.experts.on_missing, spec.limits, spec.autoscaling
