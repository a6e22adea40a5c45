"""Makes a running service into what a changed file says, or leaves it as it was.

Make before break: what is added serves before anything leaves, so that going back means ending what was added.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from cluster.api_keys import check_digest
from cluster.application import application_state, hand_over, make_application, numbers_held
from cluster.causes import cause_of
from cluster.fleet import ExpertFleet
from cluster.keeper import ExpertKeeper
from cluster.layout import Layout, layout_of
from cluster.resolve import Service

logger = logging.getLogger(__name__)

POLL_S = 0.2
# Serve takes an application over in its next turn (0.5 s, on a Ray of Manta's own); until then it tells of the old one.
TAKEN_OVER_S = 2.0
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
        commit: Makes the new service the good one: from then on there is no way back.
        uncertain: Whether Serve may have something else than `old`: an earlier change was interrupted, or failed.
    """

    def __init__(
        self,
        fleet: ExpertFleet,
        old: Service,
        new: Service,
        note: Callable[[str, bool], None],
        commit: Callable[[], None],
        uncertain: bool,
    ) -> None:
        self.status = ResizeStatus(new.version)
        self._fleet = fleet
        self._old = old
        self._new = new
        self._note = note
        self._commit = commit
        self._concerns_serve = uncertain or _of_application(old) != _of_application(new)
        self._added: list[ExpertKeeper] = []
        self._handed_over = uncertain

    async def run(self) -> None:
        """Makes the change. If it fails, everything is as before, and `status.error` says why."""
        try:
            layout = layout_of(self._new)
            counts = self._counts(layout)
            await self._make(layout, counts)
            self._commit()
        except Exception as error:
            self.status.error = cause_of(error)
            await self._roll_back()
            return
        await self._let_go(layout, counts)
        self._end("done")

    async def _let_go(self, layout: Layout, counts: dict[int, int]) -> None:
        """Ends what is not wanted any more. Never raises: the change is made, whatever is left over."""
        self._stage(LEAVING)
        try:
            leaving = [*await self._fleet.use(layout), *self._fleet.beyond(counts)]
            await self._fleet.retire(leaving)
        except Exception as error:
            logger.exception("what leaves could not be ended")
            self._note(f"what leaves could not be ended, and goes with the next change: {cause_of(error)}", True)

    async def _make(self, layout: Layout, counts: dict[int, int]) -> None:
        """Starts everything that is new, and waits until it serves."""
        if self._concerns_serve:  # not on the way back: the file on this host need not hold the old keys any more
            await asyncio.to_thread(check_digest, self._new.spec, self._new.keys_digest)
        self._fleet.take_service(self._new)
        self._stage(LOADING)
        self._added = self._fleet.grow(layout, counts)
        timeout_s = self._new.spec.limits.load_timeout_s + GRACE_S
        wanted = [*self._added, *self._fleet.needed_beside(layout, self._added)]
        await self._fleet.wait_serving(wanted, timeout_s, lambda done: self._count(done, len(wanted)))
        if self._concerns_serve:
            self._stage(STARTING)
            if not self._fleet.complete:  # new routers would never be ready with what there was
                await self._fleet.use(layout)
            await self._exchange(self._new)

    def _counts(self, layout: Layout) -> dict[int, int]:
        """Returns how many replicas each shard is to have: a range keeps the number that the load has brought."""
        counts, shards = self._fleet.counts, self._fleet.layout.shards
        present = {(shard.expert_ids, shard.slice_index): counts[shard.index] for shard in shards}
        return {
            shard.index: min(
                max(present.get((shard.expert_ids, shard.slice_index), 0), shard.replicas.min), shard.replicas.max
            )
            for shard in layout.shards
        }

    async def _exchange(self, service: Service) -> None:
        """Hands the application to Serve and waits until its replicas run, and none of another version.

        Meanwhile a range is held at the number that runs: if the load asked for more, and there were no room for it,
        the change would wait for that.

        Raises:
            RuntimeError: A replica failed to start.
            TimeoutError: They were not there within `limits.load_timeout_s`.
        """
        limits = service.spec.limits
        limit_s = limits.load_timeout_s + limits.drain_timeout_s + GRACE_S
        deadline_s = time.monotonic() + limit_s
        held = await asyncio.wait_for(asyncio.to_thread(numbers_held, service.spec), limit_s)
        application = await asyncio.to_thread(make_application, service, held)
        self._handed_over = True
        await asyncio.wait_for(asyncio.to_thread(hand_over, service, application), limit_s)
        await asyncio.sleep(TAKEN_OVER_S)
        while True:
            state = await asyncio.wait_for(asyncio.to_thread(application_state, service.spec, held), limit_s)
            self._count(state.serving, state.wanted)
            if state.settled:
                break
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"not within {limits.load_timeout_s:g} s (limits.load_timeout_s): {state.unsettled}; perhaps the "
                    "cluster has no room for it"
                )
            await asyncio.sleep(POLL_S)
        if held:
            await asyncio.wait_for(asyncio.to_thread(hand_over, service), limit_s)

    async def _roll_back(self) -> None:
        """Never raises: if it fails, the outcome says so."""
        self._note(f"the change failed: {self.status.error}; going back", True)
        self._stage(ROLLING_BACK)
        outcome: OutcomeState = "rolled back"
        try:
            await self._fleet.use(layout_of(self._old))
            self._fleet.take_service(self._old)
            if self._handed_over:
                await self._exchange(self._old)
        except Exception as error:
            logger.exception("going back failed")
            self.status.error += f"; and going back failed: {cause_of(error)}"
            outcome = "failed"
        await self._retire_added()
        self._end(outcome)

    async def _retire_added(self) -> None:
        try:
            await self._fleet.retire(self._added)
        except Exception as error:
            logger.exception("what was added could not be ended")
            self._note(f"what was added could not be ended, and goes with the next change: {cause_of(error)}", True)

    def _stage(self, stage: str) -> None:
        self.status.stage, self.status.done, self.status.total = stage, 0, 0

    def _count(self, done: int, total: int) -> None:
        self.status.done, self.status.total = done, total

    def _end(self, state: OutcomeState) -> None:
        self.status.state = state
        self._note(f"change to version {self._new.version}: {state}", state != "done")


def _of_application(service: Service) -> tuple[object, ...]:
    """Returns what the Serve application is made from: if it is the same, Serve has nothing to do."""
    spec = service.spec
    on_missing, keys = spec.experts.on_missing, service.keys_digest
    return spec.model, spec.api, spec.attention, spec.router, on_missing, spec.limits, spec.autoscaling, keys
