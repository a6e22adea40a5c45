"""Changes the data-plane key of a running service for a new one, step by step; no connection is refused meanwhile."""

import asyncio
import time
from collections.abc import Callable

from cluster.causes import cause_of
from cluster.fleet import ExpertFleet
from cluster.keeper import Report
from cluster.secret import DataPlaneKeys, data_plane_keys, next_step, store_data_plane_keys

POLL_S = 0.1
GOES_ON = "those of before stay valid, and `manta apply --rotate-keys` goes on with it"
ACCEPTED_YET = "only they accept the old key yet; `manta apply --rotate-keys` changes it once more, with them"
STEP_TIMEOUT_S = 30.0  # members hear of a step with their next announcement; one that hangs is gone by then


class KeyRotation:
    """Of one service.

    Args:
        behind: Returns the members that do not have the keys of a generation yet, in words.
    """

    def __init__(self, service: str, fleet: ExpertFleet, behind: Callable[[int], list[str]], report: Report) -> None:
        self._service = service
        self._fleet = fleet
        self._behind = behind
        self._report = report
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._error = ""
        self._keys = data_plane_keys(service)

    @property
    def generation(self) -> int:
        """Of the keys that every process is to have."""
        return self._keys.generation

    def status(self) -> dict[str, object]:
        """Returns how far a change is, as plain data; `state`: settled, running or stopped (it goes on when asked)."""
        state = "running" if self._is_running else "stopped" if self._keys.stage else "settled"
        return {"generation": self._keys.generation, "state": state, "error": self._error}

    def start(self) -> None:
        """Begins a change, or goes on with one that was stopped.

        Raises:
            ValueError: One is under way.
        """
        if self._is_running:
            raise ValueError(f"the data-plane key of {self._service} is being changed already (manta status)")
        self._error = ""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def resume(self) -> None:
        """Goes on with what an earlier controller has begun."""
        if self._keys.stage and not self._is_running:
            self.start()

    async def stop(self) -> None:
        """Leaves a change where it is: every two processes have a key in common at each of its steps.

        Nothing is written after that: whoever ends the service forgets the keys.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    @property
    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def _run(self) -> None:
        try:
            if self._keys.stage:
                await self._everywhere(self._keys)
            while True:
                step = next_step(self._keys)
                self._writing = asyncio.ensure_future(asyncio.to_thread(store_data_plane_keys, self._service, step))
                await asyncio.shield(self._writing)
                self._keys = step
                await self._everywhere(step)
                if not step.stage:
                    self._report("the data-plane key was changed")
                    return
        except Exception as error:
            self._error = cause_of(error)
            self._report(f"the data-plane key was not changed all the way: {self._error}", failed=True)

    async def _everywhere(self, step: DataPlaneKeys) -> None:
        """Returns once every process has the keys of a step.

        Raises:
            TimeoutError: Some have not taken them in time; names them.
        """
        deadline_s = time.monotonic() + STEP_TIMEOUT_S
        while behind := [*await self._fleet.set_keys(step), *self._behind(step.generation)]:
            if time.monotonic() > deadline_s:
                late = f"not within {STEP_TIMEOUT_S:g} s: {', '.join(behind)} did not take the next keys"
                raise TimeoutError(f"{late}; {GOES_ON if step.stage else ACCEPTED_YET}")
            await asyncio.sleep(POLL_S)
