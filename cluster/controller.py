"""The controller: one named Ray actor that turns the spec into expert actors and publishes the routing table.

Nothing on the hot path asks it anything: while it is away, tokens flow on the last table.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray

from cluster.keeper import ExpertKeeper, place_experts
from cluster.members import Members
from cluster.names import NAMESPACE, controller_name
from cluster.resolve import Service
from transport.address import Address
from transport.membership import Role, Snapshot
from transport.table import RoutingTable, ShardEntry

logger = logging.getLogger(__name__)

NUM_EVENTS = 200
TICK_S = 1.0


def start_controller(service: Service) -> Any:
    """Returns the service's controller, which is started if there is none."""
    return Controller.options(
        name=controller_name(service.name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    ).remote(service)


@ray.remote
class Controller:
    """Desired state: the service's shards and replicas. Actual state: one `ExpertKeeper` for each replica."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._members = Members()
        self._keepers: list[ExpertKeeper] = []
        self._events: list[dict[str, object]] = []
        self._table = RoutingTable(version=int(time.time() * 1000))
        self._changed = asyncio.Condition()
        self._ticker = asyncio.get_event_loop().create_task(self._run())

    async def table(self, known_version: int, timeout_s: float) -> RoutingTable | None:
        """Returns the routing table as soon as its version differs from `known_version`; None after `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._table.version != known_version), timeout_s
                )
            except TimeoutError:
                return None
            return self._table

    async def announce(
        self, member_id: str, role: Role, address: Address | None, pid: int, snapshot: Snapshot
    ) -> None:
        """A gateway, node or router says that it serves; repeated about once a second."""
        if self._members.heard(member_id, role, address, pid, snapshot, time.monotonic()):
            self._event(f"{role} {pid} serves")
            await self._publish()

    async def leave(self, member_id: str) -> None:
        """A member stops serving."""
        member = self._members.remove(member_id)
        if member is not None:
            self._event(f"{member.role} {member.pid} has left")
            await self._publish()

    async def snapshots(self, except_id: str) -> list[tuple[Role, Snapshot]]:
        """Returns the last snapshot of every gateway and node but one."""
        return [
            (member.role, member.snapshot)
            for member_id, member in self._members.items()
            if member_id != except_id and member.role != "router"
        ]

    async def status(self) -> dict[str, object]:
        """Returns what runs, where, how loaded, and the last events, as plain data."""
        experts: dict[int, dict[str, object]] = {}
        for keeper in self._keepers:
            shard = experts.setdefault(
                keeper.shard.index,
                {
                    "shard": keeper.shard.index,
                    "experts": list(keeper.shard.expert_ids),
                    "slice": keeper.shard.slice_index,
                    "num_slices": keeper.shard.num_slices,
                    "replicas": [],
                },
            )
            replicas = shard["replicas"]
            assert isinstance(replicas, list)
            replicas.append(keeper.status())
        return {
            "name": self._service.name,
            "model": self._service.spec.model.served_name,
            "spec_version": self._service.version,
            "controller": {"pid": os.getpid()},
            "experts": list(experts.values()),
            "routers": self._members.status("router"),
            "attention_nodes": self._members.status("node"),
            "gateways": self._members.status("gateway"),
            "events": list(self._events),
        }

    async def spec_version(self) -> str:
        """Returns the version of the spec that it was started with."""
        return self._service.version

    async def stop(self) -> None:
        """Ends every expert actor, then itself."""
        self._ticker.cancel()
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
        self._keepers.clear()
        ray.get_runtime_context().current_actor.exit.remote()

    async def exit(self) -> None:
        """Leaves for good; Ray does not restart an actor that exits by itself."""
        ray.actor.exit_actor()

    async def _run(self) -> None:
        try:
            group = await place_experts(self._service)
            self._keepers = [
                ExpertKeeper(self._service, shard, replica, group, bundle, self._event, self._publish)
                for bundle, (shard, replica) in enumerate(group.replicas)
            ]
            await self._publish()
            async with asyncio.TaskGroup() as tasks:
                for keeper in self._keepers:
                    tasks.create_task(keeper.run())
                tasks.create_task(self._watch_members())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("the controller cannot go on")
            self._event(f"cannot go on: {error}", failed=True)

    async def _watch_members(self) -> None:
        """Drops members that have fallen silent; ends the service when it has been without any for too long."""
        last_seen_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            for member in self._members.drop_silent(now_s):
                self._event(f"{member.role} {member.pid} has fallen silent", failed=True)
                await self._publish()
            if self._members:
                last_seen_s = now_s
            elif now_s - last_seen_s > self._service.spec.limits.orphan_timeout_s:
                logger.warning("no gateway, node or router for %g s: ending", now_s - last_seen_s)
                await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
                await self.exit()

    async def _publish(self) -> None:
        """Makes the routing table anew and wakes whoever waits for it."""
        shards: dict[int, ShardEntry] = {}
        for keeper in self._keepers:
            shard = keeper.shard
            before = shards.get(shard.index)
            replicas = before.replicas if before is not None else ()
            if keeper.address is not None:
                replicas += (keeper.address,)
            shards[shard.index] = ShardEntry(shard.expert_ids, shard.slice_index, shard.num_slices, replicas)
        async with self._changed:
            self._table = RoutingTable(
                self._table.version + 1,
                tuple(shards.values()),
                self._members.addresses("router"),
                self._members.addresses("node"),
            )
            self._changed.notify_all()

    def _event(self, text: str, failed: bool = False) -> None:
        event: Mapping[str, object] = {"time": time.time(), "text": text, "failed": failed}
        logger.info("%s", text)
        self._events = [*self._events[-NUM_EVENTS + 1 :], dict(event)]
