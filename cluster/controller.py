"""The controller: one named Ray actor that turns the spec into expert actors and publishes the routing table.

Nothing on the hot path asks it anything: while it is away, tokens flow on the last table.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray

from cluster.backoff import Backoff
from cluster.causes import cause_of
from cluster.events import Events
from cluster.keeper import ExpertKeeper
from cluster.members import Announcement, Members
from cluster.names import NAMESPACE, controller_name
from cluster.placement import ExpertGroup, place_experts, release_group
from cluster.resolve import Service
from cluster.secret import forget_data_plane_key
from cluster.table import routing_table
from transport.membership import Role, Snapshot
from transport.table import RoutingTable

logger = logging.getLogger(__name__)

TICK_S = 1.0
# A restarted controller publishes nothing until every member had time to announce itself again: a table without them
# would cut connections that are in use.
SETTLE_S = 4.0


@dataclass(frozen=True)
class News:
    """What a member is told: a new routing table, that the service is being stopped, or neither."""

    table: RoutingTable | None = None
    stopping: bool = False


def start_controller(service: Service, take_over: bool = True) -> Any:
    """Returns the service's controller, which is started if there is none.

    Args:
        take_over: Whether one that runs already will do.

    Raises:
        ValueError: One runs already, and must not.
    """
    return Controller.options(
        name=controller_name(service.name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=take_over,
        num_cpus=0,
        max_restarts=-1,
    ).remote(service)


@ray.remote
class Controller:
    """Desired state: the service's shards and replicas. Actual state: one `ExpertKeeper` for each replica."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._members = Members()
        self._joined = False
        self._keepers: list[ExpertKeeper] = []
        self._placement_error = ""
        self._events = Events()
        self._settled = self._stopping = False
        self._table = RoutingTable(version=int(time.time() * 1000))
        self._changed = asyncio.Condition()
        start = asyncio.get_event_loop().create_task
        self._keeping = start(self._guarded(self._keep_experts))
        self._watching = start(self._guarded(self._watch_members))

    async def news(self, known_version: int, timeout_s: float) -> News:
        """Answers as soon as the routing table's version differs from `known_version`, or after `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._has_news(known_version)), timeout_s)
            except TimeoutError:
                return News()
            return News(stopping=True) if self._stopping else News(self._table)

    async def announce(self, member_id: str, said: Announcement) -> None:
        """A gateway, node or router says that it serves; repeated about once a second."""
        if self._members.heard(member_id, said, time.monotonic()):
            self._joined = True
            self._event(f"{said.role} {said.pid} serves")
            await self._publish()

    async def leave(self, member_id: str) -> None:
        """A member stops serving."""
        said = self._members.remove(member_id)
        if said is not None:
            self._event(f"{said.role} {said.pid} has left")
            await self._publish()

    async def snapshots(self, except_id: str) -> list[tuple[Role, Snapshot]]:
        """Returns the last snapshot of every gateway and node but one."""
        return self._members.snapshots(except_id)

    async def status(self) -> dict[str, object]:
        """Returns what runs, where, how loaded, and the last events, as plain data."""
        experts: dict[int, dict[str, object]] = {}
        replicas: dict[int, list[dict[str, object]]] = {}
        for keeper in self._keepers:
            shard = keeper.shard
            replicas.setdefault(shard.index, []).append(keeper.status())
            experts[shard.index] = {
                "shard": shard.index,
                "experts": list(shard.expert_ids),
                "slice": shard.slice_index,
                "num_slices": shard.num_slices,
                "replicas": replicas[shard.index],
            }
        return {
            "name": self._service.name,
            "model": self._service.spec.model.served_name,
            "spec_version": self._service.version,
            "state": "stopping" if self._stopping else "running",
            "error": self._placement_error,
            "controller": {"pid": os.getpid(), "host": ray.get_runtime_context().get_node_id()},
            "experts": list(experts.values()),
            "routers": self._members.status("router"),
            "attention_nodes": self._members.status("node"),
            "gateways": self._members.status("gateway"),
            "events": self._events.as_list(),
        }

    async def stop(self) -> list[str]:
        """Ends every expert actor and tells the members; then waits for `exit`, or for the members to be gone.

        Returns:
            The Serve applications that the members belong to: they are for the caller to delete.
        """
        self._stopping = True
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
        release_group(self._service.name)
        forget_data_plane_key(self._service.name)
        async with self._changed:
            self._changed.notify_all()
        return list(self._members.apps)

    async def exit(self) -> None:
        """Leaves for good; Ray does not restart an actor that exits by itself."""
        ray.actor.exit_actor()  # pyright: ignore[reportAttributeAccessIssue]

    def _has_news(self, known_version: int) -> bool:
        return self._stopping or (self._settled and self._table.version != known_version)

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Runs one of the controller's tasks; if it fails, says why and runs it again."""
        backoff = Backoff()
        while True:
            started_s = time.monotonic()
            try:
                await task()
                return
            except Exception as error:
                logger.exception("a task of the controller failed")
                self._event(f"the controller failed: {cause_of(error)}; it goes on", failed=True)
            await asyncio.sleep(backoff.pause_s(time.monotonic() - started_s))

    async def _keep_experts(self) -> None:
        group = await self._place()
        self._keepers = [
            ExpertKeeper(self._service, shard, replica, group, bundle, self._event, self._publish)
            for bundle, (shard, replica) in enumerate(group.replicas)
        ]
        num_adopted = sum(await asyncio.gather(*(keeper.adopt() for keeper in self._keepers)))
        if num_adopted:
            self._event(f"took over {num_adopted} of {len(self._keepers)} expert actors")
            await asyncio.sleep(SETTLE_S)
        self._settled = True
        await self._publish()
        async with asyncio.TaskGroup() as tasks:
            for keeper in self._keepers:
                tasks.create_task(keeper.run())

    async def _place(self) -> ExpertGroup:
        """Returns where the experts may run; tries for as long as it takes."""
        backoff = Backoff()
        while True:
            try:
                group = await place_experts(self._service)
            except Exception as error:
                self._placement_error = cause_of(error)
                self._event(f"the experts cannot be placed: {self._placement_error}; it is tried again", failed=True)
                await asyncio.sleep(backoff.pause_s(0.0))
            else:
                self._placement_error = ""
                return group

    async def _watch_members(self) -> None:
        """Drops members that have fallen silent; ends the service when it has been without any for too long."""
        last_s, alone_s = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            late_s, last_s = now_s - last_s - TICK_S, now_s
            if late_s > TICK_S:  # this process was suspended, and perhaps all others with it
                self._members.forgive(late_s)
            for said in self._members.drop_silent(now_s):
                self._event(f"{said.role} {said.pid} has fallen silent", failed=True)
                await self._publish()
            alone_s = 0.0 if self._members else alone_s + TICK_S
            if alone_s > self._patience_s():
                await self._end(alone_s)
                return

    def _patience_s(self) -> float:
        """How long it stays without any member: a service that has just been started (or found again) has none."""
        if self._stopping:
            return SETTLE_S
        limits = self._service.spec.limits
        return limits.orphan_timeout_s if self._joined else max(limits.orphan_timeout_s, limits.load_timeout_s)

    async def _end(self, alone_s: float) -> None:
        if not self._stopping:
            logger.warning("no gateway, node or router for %g s: ending", alone_s)
            await self.stop()
        ray.get_runtime_context().current_actor.exit.remote()

    async def _publish(self) -> None:
        """Makes the routing table anew and wakes whoever waits for it."""
        if not self._settled or self._stopping:
            return
        shards = [(keeper.shard, keeper.address) for keeper in self._keepers]
        async with self._changed:
            routers, nodes = self._members.addresses("router"), self._members.addresses("node")
            self._table = routing_table(self._table.version + 1, shards, routers, nodes)
            self._changed.notify_all()

    def _event(self, text: str, failed: bool = False) -> None:
        logger.info("%s", text)
        self._events.note(text, failed, time.time())
