"""Keeps one replica of one shard alive: starts it, loads it, watches it, replaces it."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.backoff import Backoff
from cluster.causes import cause_of
from cluster.names import NAMESPACE, expert_name
from cluster.placement import ExpertGroup
from cluster.resolve import Service
from cluster.secret import data_plane_key
from cluster.spec import ShardPlan
from experts.actor import ExpertActor, ExpertSettings
from transport.address import Address

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
ADOPT_TIMEOUT_S = 5.0  # an expert that runs answers in milliseconds


class Report(Protocol):
    """Notes an event."""

    def __call__(self, text: str, failed: bool = False) -> None: ...


class ExpertKeeper:
    """One replica of one shard, for as long as the service runs.

    Args:
        bundle: The replica's bundle in the placement group.
        report: Notes an event.
        publish: Makes a change of `address` known.
    """

    def __init__(
        self,
        service: Service,
        shard: ShardPlan,
        replica: int,
        group: ExpertGroup,
        bundle: int,
        report: Report,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self.shard = shard
        self.address: Address | None = None
        self._service = service
        self._name = expert_name(service.name, shard.index, replica)
        self._group = group
        self._bundle = bundle
        self._report = report
        self._publish = publish
        self._actor: Any = None
        self._pid = 0
        self._host = ""
        self._state = "starting"
        self._error = ""
        self._figures: Mapping[str, Any] = {}
        self._rows_per_s = 0.0
        self._last_rows = (0.0, 0)
        self._serving_since_s: float | None = None
        self._backoff = Backoff()

    def status(self) -> dict[str, object]:
        """Returns what `manta status` shows of this replica; `error`: why the last try failed."""
        return {
            "pid": self._pid,
            "host": self._host,
            "state": self._state,
            "loaded": round(float(self._figures.get("loaded", 0.0)), 2),
            "rows_per_s": round(self._rows_per_s, 1),
            "rows_total": self._last_rows[1],
            "queue": int(self._figures.get("queue", 0)),
            "error": self._error,
        }

    async def adopt(self) -> bool:
        """Takes over the replica if it runs already: an earlier controller has started it. Returns whether it does."""
        try:
            actor: Any = ray.get_actor(self._name, NAMESPACE)
            self.address = await asyncio.wait_for(actor.address.remote(), ADOPT_TIMEOUT_S)
        except (ValueError, RayError, TimeoutError):
            return False
        return self.address is not None

    async def run(self) -> None:
        """Keeps the replica alive until cancelled; nothing else ends it."""
        while True:
            try:
                await self._serve()
            except Exception as error:
                self._note_failure(error)
                self._kill()
            self._state, self.address = "replacing", None
            await self._publish()
            await asyncio.sleep(self._backoff.pause_s(self._worked_s()))

    async def stop(self) -> None:
        """Ends the replica for good."""
        self._state = "stopped"
        self._kill()

    def _note_failure(self, error: Exception) -> None:
        self._error = cause_of(error)
        if isinstance(error, RayActorError):
            self._report(f"{self._name} (pid {self._pid}) died: {self._error}; it is replaced", failed=True)
            return
        if not isinstance(error, RayError | OSError | TimeoutError | RuntimeError | ValueError):
            logger.error("%s failed in an unforeseen way", self._name, exc_info=error)
        self._report(f"{self._name} failed: {self._error}; it is tried again", failed=True)

    def _worked_s(self) -> float:
        """Returns how long it had served; asked once, when it no longer does."""
        since_s, self._serving_since_s = self._serving_since_s, None
        return 0.0 if since_s is None else time.monotonic() - since_s

    def _kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None

    async def _serve(self) -> None:
        """Finds or starts the actor, loads it, publishes it, and ends (by an exception) when it does.

        Raises:
            RayActorError: It died.
            RuntimeError: It does not serve any more, or not this service.
            TimeoutError: It was not loaded within `limits.load_timeout_s`.
            CheckpointError: It cannot be loaded.
        """
        key, settings = data_plane_key(self._service.name), self._settings()
        self._actor = actor = self._start_actor(settings)
        timeout_s = self._service.spec.limits.load_timeout_s
        self._host, self._pid = await _within(timeout_s, actor.host.remote(), "did not start")
        if not await _within(timeout_s, actor.belongs_to.remote(settings, key), "did not answer"):
            raise RuntimeError("it was left over from another service of this name")
        self._state = "loading"
        poller = asyncio.get_running_loop().create_task(self._poll(actor))
        try:
            self.address = await _within(timeout_s, actor.start.remote(key, self._core()), "did not load")
            self._state, self._serving_since_s, self._error = "serving", time.monotonic(), ""
            self._report(f"{self._name} (pid {self._pid}) serves")
            await self._publish()
            await actor.watch.remote()
        finally:
            poller.cancel()

    def _settings(self) -> ExpertSettings:
        service = self._service
        return ExpertSettings(
            directory=service.directory,
            config=service.config,
            expert_ids=self.shard.expert_ids,
            slice_index=self.shard.slice_index,
            num_slices=self.shard.num_slices,
            dtype=service.dtype,
            device=service.expert_device,
            orphan_timeout_s=service.spec.limits.orphan_timeout_s,
            loopback=service.loopback,
        )

    def _start_actor(self, settings: ExpertSettings) -> Any:
        experts = self._service.spec.experts
        strategy = PlacementGroupSchedulingStrategy(self._group.group, placement_group_bundle_index=self._bundle)
        return ExpertActor.options(
            name=self._name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=self._group.num_cpus,
            num_gpus=experts.num_gpus or None,
            accelerator_type=experts.accelerator_type,
            scheduling_strategy=strategy,
        ).remote(settings)

    def _core(self) -> int | None:
        """Returns the core that this replica is pinned to: replicas take turns, where there are cores for all."""
        experts = self._service.spec.experts
        if self._service.expert_device != "cpu" or experts.pin_cores is False:
            return None
        num_cores = os.cpu_count() or 1
        if experts.pin_cores == "auto" and len(self._group.replicas) > num_cores:
            return None
        return self._bundle % num_cores

    async def _poll(self, actor: Any) -> None:
        """Follows the replica's figures until cancelled; also tells it that a controller is there."""
        while True:
            try:
                self._take_figures(await actor.snapshot.remote())
            except RayError as error:
                logger.info("%s does not answer: %s", self._name, cause_of(error))  # if it died, `_serve` hears of it
            await asyncio.sleep(STATUS_INTERVAL_S)

    def _take_figures(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures
        if "rows_total" in figures:
            now_s, rows = time.monotonic(), int(figures["rows_total"])
            before_s, before = self._last_rows
            if before_s and rows >= before:
                self._rows_per_s = (rows - before) / max(now_s - before_s, 1e-6)
            self._last_rows = (now_s, rows)


async def _within(timeout_s: float, answer: Awaitable[Any], what: str) -> Any:
    """Returns an actor's answer.

    Raises:
        TimeoutError: It did not come in time; says so.
    """
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        raise TimeoutError(f"it {what} within {timeout_s:g} s (limits.load_timeout_s)") from None
