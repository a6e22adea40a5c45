"""Keeps one replica of one shard alive: places it, loads it, watches it, replaces it."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import (  # pyright: ignore[reportMissingTypeStubs]
    PlacementGroup,
    get_placement_group,  # pyright: ignore[reportUnknownVariableType]
    placement_group,  # pyright: ignore[reportUnknownVariableType]
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.names import NAMESPACE, expert_name
from cluster.resolve import EXPERT_CPU_SHARE, Service, fitting_cpus
from cluster.secret import data_plane_key
from cluster.spec import ShardPlan, shards
from experts.actor import ExpertActor, ExpertSettings
from transport.address import Address

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
STATUS_INTERVAL_S = 1.0


class Report(Protocol):
    """Notes an event."""

    def __call__(self, text: str, failed: bool = False) -> None: ...


@dataclass(frozen=True)
class ExpertGroup:
    """A placement group with a bundle for each replica of each shard."""

    group: PlacementGroup
    replicas: tuple[tuple[ShardPlan, int], ...]
    num_cpus: float


async def place_experts(service: Service) -> ExpertGroup:
    """Reserves what the spec asks for; an earlier controller's reservation is taken over.

    Raises:
        RuntimeError: It cannot be placed within `limits.load_timeout_s`; says what was asked for.
    """
    spec = service.spec
    plan = shards(spec, service.config.num_experts, service.num_cpus)
    replicas = tuple((shard, replica) for shard in plan for replica in range(shard.replicas))
    cpus = ray.cluster_resources().get("CPU", 1.0)
    given = spec.experts.num_cpus
    num_cpus = fitting_cpus(len(replicas), cpus, EXPERT_CPU_SHARE) if given == "auto" else given
    bundle: dict[str, float] = {"CPU": num_cpus}
    if spec.experts.num_gpus:
        bundle["GPU"] = spec.experts.num_gpus
    group = _existing_group(service.name)
    if group is None:
        group = placement_group(
            [dict(bundle) for _ in replicas],
            strategy=spec.experts.placement.upper(),
            name=_group_name(service.name),
            lifetime="detached",
            bundle_label_selector=[dict(spec.experts.labels)] * len(replicas) if spec.experts.labels else None,
        )
    try:
        await asyncio.wait_for(group.ready(), spec.limits.load_timeout_s)  # pyright: ignore[reportArgumentType]
    except TimeoutError:
        raise RuntimeError(
            f"{len(replicas)} expert actors with {bundle} each ({spec.experts.placement}) could not be placed within "
            f"{spec.limits.load_timeout_s:g} s (limits.load_timeout_s); the cluster has {ray.cluster_resources()}"
        ) from None
    return ExpertGroup(group, replicas, num_cpus)


def _group_name(service: str) -> str:
    return f"{NAMESPACE}/{service}/experts"


def _existing_group(service: str) -> PlacementGroup | None:
    try:
        return get_placement_group(_group_name(service))
    except ValueError:
        return None


def release_group(service: str) -> None:
    """Gives back what `place_experts` reserved."""
    group = _existing_group(service)
    if group is not None:
        remove_placement_group(group)


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
        self._loaded: object = 0.0
        self._rows_per_s = 0.0
        self._last_rows = (0.0, 0)
        self._retry_s = FIRST_RETRY_S

    def status(self) -> dict[str, object]:
        """Returns what `manta status` shows of this replica."""
        return {
            "pid": self._pid,
            "host": self._host,
            "state": self._state,
            "loaded": self._loaded,
            "rows_per_s": round(self._rows_per_s, 1),
            "rows_total": self._last_rows[1],
        }

    async def run(self) -> None:
        """Keeps the replica alive until cancelled."""
        while True:
            try:
                await self._serve()
            except RayActorError as error:
                self._report(f"{self._name} (pid {self._pid}) died: {_first_line(error)}; it is replaced", failed=True)
            except (RayError, TimeoutError, RuntimeError, ValueError, OSError) as error:
                self._report(f"{self._name} failed: {_first_line(error)}; trying again", failed=True)
                self._kill()
            self._state = "starting"
            self.address = None
            await self._publish()
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(LAST_RETRY_S, self._retry_s * 2)

    async def stop(self) -> None:
        """Ends the replica for good."""
        self._state = "stopped"
        self._kill()

    def _kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
            self._actor = None

    async def _serve(self) -> None:
        """Finds or starts the actor, loads it, publishes it, and returns (by an exception) when it ends."""
        self._actor = self._start_actor()
        timeout_s = self._service.spec.limits.load_timeout_s
        self._host, self._pid = await asyncio.wait_for(self._actor.host.remote(), timeout_s)
        self._state = "loading"
        poller = asyncio.get_running_loop().create_task(self._poll(self._actor))
        try:
            start = self._actor.start.remote(data_plane_key(self._service.name), self._core())
            self.address = await asyncio.wait_for(start, timeout_s)
            self._state, self._retry_s = "serving", FIRST_RETRY_S
            self._report(f"{self._name} (pid {self._pid}) serves")
            await self._publish()
            await self._actor.watch.remote()
        finally:
            poller.cancel()

    def _start_actor(self) -> Any:
        experts, service = self._service.spec.experts, self._service
        settings = ExpertSettings(
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
        """Follows the replica's figures; also tells it that a controller is there."""
        while True:
            try:
                figures: Mapping[str, Any] = await actor.snapshot.remote()
            except RayError:
                return  # it has died: `_serve` hears of it too
            self._loaded = figures["loaded"]
            if "rows_total" in figures:
                now_s, rows = time.monotonic(), int(figures["rows_total"])
                before_s, before = self._last_rows
                if before_s:
                    self._rows_per_s = (rows - before) / max(now_s - before_s, 1e-6)
                self._last_rows = (now_s, rows)
            await asyncio.sleep(STATUS_INTERVAL_S)


def _first_line(error: BaseException) -> str:
    """Returns the line of a Ray error that says what happened: the cause's, without the remote traceback."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
