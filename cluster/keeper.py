"""Keeps one replica of one shard alive: starts it, loads it, watches it, replaces it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.backoff import Backoff
from cluster.causes import cause_of
from cluster.layout import Layout, cpus_of, expert_settings
from cluster.names import NAMESPACE, expert_name
from cluster.placement import Reservation, is_placed
from cluster.resolve import Service
from cluster.secret import DataPlaneKeys, data_plane_keys
from cluster.spec import ShardPlan
from experts.actor import ExpertActor, ExpertSettings, Place
from transport.address import Address

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
SECOND_CHANCE_S = 1.0  # for an answer that was late because this process was held up, not the other one
ADOPT_TIMEOUT_S = 5.0  # an expert that runs answers in milliseconds
DRAIN_POLL_S = 0.1
START_CHECK_S = 5.0


class Report(Protocol):
    """Notes an event."""

    def __call__(self, text: str, failed: bool = False) -> None: ...


class ExpertKeeper:
    """One replica of one shard, for as long as it is wanted.

    Args:
        reserve: Reserves its place on a host; called again when it is tried again.
        core_on: Chooses the core that it is pinned to, by its host and how many cores it may use there; None: any.
            Called once it has a host, and not if it runs already: then it has its core.
        report: Notes an event.
        publish: Makes a change of `address` known.
    """

    def __init__(
        self,
        service: Service,
        layout: Layout,
        shard: ShardPlan,
        replica: int,
        reserve: Callable[[], Awaitable[Reservation]],
        core_on: Callable[[str, int], int | None],
        report: Report,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self.layout = layout
        self.shard = shard
        self.replica = replica
        self.core: int | None = None
        self.address: Address | None = None
        self.leaving = False
        """Whether it is being retired: routers are not to use it any more."""
        self.served = False
        """Whether it has served at least once."""
        self.num_failures = 0
        """Tries that failed since it last served."""
        self.error = ""
        """Why the last try failed; empty once it serves."""
        self.reservation: Reservation | None = None
        """Its place; None: none yet, or an earlier controller's."""
        self._service = service
        self._name = expert_name(service.name, layout.version, shard.index, replica)
        self._reserve = reserve
        self._core_on = core_on
        self._report = report
        self._publish = publish
        self._actor: Any = None
        self._pid = 0
        self._host = ""
        self._state = "placing"
        self._figures: Mapping[str, Any] = {}
        self._rows_per_s = 0.0
        self._last_rows = (0.0, 0)
        self._serving_since_s: float | None = None
        self._backoff = Backoff()

    @property
    def name(self) -> str:
        return self._name

    @property
    def host(self) -> str:
        """The Ray id of the host that it runs on; empty: none at present."""
        return self._host

    @property
    def figures(self) -> Mapping[str, Any]:
        """What the replica last said of itself."""
        return self._figures

    def take_service(self, service: Service) -> None:
        """Goes on with a changed service, of the same layout."""
        self._service = service

    def status(self) -> dict[str, object]:
        """Returns what `manta status` shows of this replica; `error`: why the last try failed."""
        return {
            "replica": self.replica,
            "pid": self._pid,
            "host": self._host,
            "state": "leaving" if self.leaving else self._state,
            "loaded": round(float(self._figures.get("loaded", 0.0)), 2),
            "rows_per_s": round(self._rows_per_s, 1),
            "rows_total": self._last_rows[1],
            "queue": int(self._figures.get("queue", 0)),
            "utilization": self._figures.get("utilization"),
            "error": self.error,
        }

    async def adopt(self) -> bool:
        """Takes over the replica if it runs already: an earlier controller has started it. Returns whether it does."""
        try:
            actor: Any = ray.get_actor(self._name, NAMESPACE)
            place: Place = await asyncio.wait_for(actor.place.remote(), ADOPT_TIMEOUT_S)
            self.address = await asyncio.wait_for(actor.address.remote(), ADOPT_TIMEOUT_S)
        except (ValueError, RayError, TimeoutError):
            return False
        self._host, self._pid, self.core = place.host, place.pid, place.core  # before others choose theirs
        return self.address is not None

    async def run(self) -> None:
        """Keeps the replica alive until cancelled; nothing else ends it."""
        while True:
            try:
                await self._serve()
            except Exception as error:
                self._note_failure(error)
            await self._let_go()
            await asyncio.sleep(self._backoff.pause_s(self._worked_s()))

    async def _let_go(self) -> None:
        """Takes the replica out of the routing table and ends it. Never raises: it is to be replaced in any case."""
        self._state, self.address, self._host, self.core = "replacing", None, "", None
        try:  # told before it is killed: a process that hangs may take Ray seconds to end, and rows wait for it
            await self._publish()
            self._kill()
        except Exception as error:
            logger.exception("%s could not be let go of", self._name)
            self._report(f"{self._name} could not be ended: {cause_of(error)}; it is tried again", failed=True)

    async def set_keys(self, keys: DataPlaneKeys) -> None:
        """Gives the replica the data-plane keys of now, if it runs; one that is started later begins with them.

        Raises:
            RuntimeError: It runs, and has not been found again yet.
        """
        if (actor := self._actor) is not None:
            await asyncio.wait_for(actor.set_keys.remote(keys.as_bytes), ADOPT_TIMEOUT_S)
        elif self.address is not None:
            raise RuntimeError(f"{self._name} has not been found again yet")

    async def drain(self) -> None:
        """Waits until the replica has answered what it got before routers heard that it leaves; never raises."""
        deadline_s = time.monotonic() + self._service.spec.limits.drain_timeout_s
        rows = -1
        while (actor := self._actor) is not None and time.monotonic() < deadline_s:
            try:
                figures = await asyncio.wait_for(actor.snapshot.remote(), ADOPT_TIMEOUT_S)
            except (RayError, TimeoutError):
                return
            before, rows = rows, int(figures.get("rows_total", 0))
            if rows == before and not figures.get("queue", 0):
                return
            await asyncio.sleep(DRAIN_POLL_S)

    def stop(self) -> None:
        """Ends the replica for good."""
        self._state, self.address = "stopped", None
        self._kill()

    def _note_failure(self, error: Exception) -> None:
        self.error = cause_of(error)
        self.num_failures += 1
        if isinstance(error, RayActorError):
            self._report(f"{self._name} (pid {self._pid}) died: {self.error}; it is replaced", failed=True)
            return
        if not isinstance(error, RayError | OSError | TimeoutError | RuntimeError | ValueError):
            logger.error("%s failed in an unforeseen way", self._name, exc_info=error)
        self._report(f"{self._name} failed: {self.error}; it is tried again", failed=True)

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
            RuntimeError: It does not serve any more, or not this service; or it cannot be placed.
            TimeoutError: It was not loaded within `limits.load_timeout_s`, or it hangs.
            CheckpointError: It cannot be loaded.
        """
        keys, settings = data_plane_keys(self._service.name), expert_settings(self._service, self.shard)
        timeout_s = self._service.spec.limits.load_timeout_s
        self._actor = actor = await self._find_running()
        if actor is None:
            self._state, self.address = "placing", None
            self.reservation = reservation = await self._reserve()
            self._state = "starting"
            self._actor = actor = self._start_actor(settings, reservation)
            await _within(timeout_s, _started(actor, reservation), "did not start")
        place: Place = await _within(timeout_s, actor.place.remote(), "did not answer")
        self._host, self._pid = place.host, place.pid
        asked = [actor.belongs_to.remote(settings, key) for key in keys.as_bytes]
        if not any([await _within(timeout_s, answer, "did not answer") for answer in asked]):
            raise RuntimeError("it was left over from another service of this name")
        self.core = place.core if place.started else self._core_on(place.host, place.num_cores)
        self._state = "loading"
        polling = asyncio.get_running_loop().create_task(self._poll_while_loading(actor))
        try:
            self.address = await _within(timeout_s, actor.start.remote(keys.as_bytes[0], self.core), "did not load")
            await self.set_keys(data_plane_keys(self._service.name))
        finally:
            polling.cancel()
        self._state, self._serving_since_s = "serving", time.monotonic()
        self.served, self.num_failures, self.error = True, 0, ""
        self._report(f"{self._name} (pid {self._pid}) serves")
        await self._publish()
        watchers = [asyncio.ensure_future(watch) for watch in (_until_it_ends(actor), self._poll(actor))]
        try:
            await asyncio.gather(*watchers)
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def _find_running(self) -> Any:
        """Returns the replica's actor if an earlier controller has started it; None if not. One that hangs is ended."""
        try:
            actor: Any = ray.get_actor(self._name, NAMESPACE)
        except ValueError:
            return None
        for _ in range(2):
            try:
                await asyncio.wait_for(actor.place.remote(), ADOPT_TIMEOUT_S)
                return actor
            except TimeoutError:
                continue
            except RayError:
                break
        ray.kill(actor, no_restart=True)
        return None

    def _start_actor(self, settings: ExpertSettings, reservation: Reservation) -> Any:
        strategy = PlacementGroupSchedulingStrategy(reservation.group, placement_group_bundle_index=reservation.bundle)
        return ExpertActor.options(
            name=self._name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=cpus_of(self._service, self.shard),
            num_gpus=self.shard.num_gpus or None,
            accelerator_type=self.shard.accelerator_type,
            scheduling_strategy=strategy,
        ).remote(settings)

    async def _poll_while_loading(self, actor: Any) -> None:
        """Follows how far it has come; if it dies or hangs meanwhile, whoever waits for `start` hears of it."""
        while True:
            try:
                self._figures = await actor.snapshot.remote()
            except Exception as error:  # nobody waits for this task: it must not end before the loading does
                logger.info("%s does not answer: %s", self._name, cause_of(error))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _poll(self, actor: Any) -> None:
        """Follows the replica's figures; also tells it that a controller is there.

        Raises:
            TimeoutError: It does not answer any more: it hangs.
            RayActorError: It died.
        """
        while True:
            self._take_figures(await self._answer(actor))
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _answer(self, actor: Any) -> Mapping[str, Any]:
        timeout_s = self._service.spec.limits.heartbeat_timeout_s
        for patience_s in (timeout_s, SECOND_CHANCE_S):
            try:
                return await asyncio.wait_for(actor.snapshot.remote(), patience_s)
            except TimeoutError:
                continue
        raise TimeoutError(f"pid {self._pid} has not answered for {timeout_s:g} s (limits.heartbeat_timeout_s)")

    def _take_figures(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures
        if "rows_total" in figures:
            now_s, rows = time.monotonic(), int(figures["rows_total"])
            before_s, before = self._last_rows
            if before_s and rows >= before:
                self._rows_per_s = (rows - before) / max(now_s - before_s, 1e-6)
            self._last_rows = (now_s, rows)


async def _started(actor: Any, reservation: Reservation) -> None:
    """Waits until an actor answers for the first time.

    Raises:
        RuntimeError: The host that it was to start on is gone.
    """
    answer = asyncio.ensure_future(_place_of(actor))
    try:
        while not (await asyncio.wait({answer}, timeout=START_CHECK_S))[0]:
            if not await is_placed(reservation):
                raise RuntimeError("the host that it was to start on is gone")
        await answer
    finally:
        answer.cancel()


async def _place_of(actor: Any) -> object:
    return await actor.place.remote()


async def _until_it_ends(actor: Any) -> None:
    await actor.watch.remote()


async def _within(timeout_s: float, answer: Awaitable[Any], what: str) -> Any:
    """Returns an actor's answer.

    Raises:
        TimeoutError: It did not come in time; says so.
    """
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        raise TimeoutError(f"it {what} within {timeout_s:g} s (limits.load_timeout_s)") from None
