"""What the controller does: it makes the service what its file says and publishes the routing table."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from cluster.backoff import Backoff
from cluster.causes import cause_of
from cluster.expert_scaling import ExpertScaler
from cluster.fleet import ExpertFleet
from cluster.hearing import Hearing
from cluster.key_rotation import KeyRotation
from cluster.ledger import Ledger
from cluster.member_watch import TICK_S, MemberWatch
from cluster.members import Members
from cluster.messages import encode_table, pack_news
from cluster.placement import release_all
from cluster.plain import MANTA, FormatError, pack, unpack
from cluster.resize import Resize, ResizeStatus
from cluster.resolve import Service
from cluster.secret import forget_data_plane_key
from cluster.table import routing_table
from spec.outcome import printable
from transport.membership import Role, Snapshot
from transport.table import RoutingTable

logger = logging.getLogger(__name__)

# A restarted controller publishes nothing until every member had time to announce itself again: a table without them
# would cut connections that are in use.
SETTLE_S = 4.0
Record = dict[str, Any]  # plain data: `cluster.plain`


class Control:
    """Desired state: a `Service`. Actual state: the expert fleet, Serve's application, the members that announce.

    Args:
        ledger: What to run, and what an earlier controller of this service has left.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._members = Members(self._ledger.known, time.monotonic() + SETTLE_S)
        self._watch = MemberWatch(ledger.good.name, self._members, self._event)
        self._fleet = ExpertFleet(self._service, self._event, self._publish)
        self._scaler = ExpertScaler(self._fleet, self._event)
        failure = self._ledger.failure
        self._resize = ResizeStatus(self._service.version, "failed", error=failure) if failure else None
        self._restarted = self._ledger.found  # by Ray, or by a member after an earlier one was gone for good
        if self._restarted:
            self._event(f"the controller was restarted (pid {os.getpid()}); {self._ledger.goal}", failed=True)
        self._settled = self._stopping = False
        self._table = RoutingTable(epoch=self._ledger.epoch)
        self._encoded = b""
        self._changed = asyncio.Condition()
        self._num_heard = 0
        self._hearing = Hearing(self._event)
        self._rotation = KeyRotation(ledger.good.name, self._fleet, self._members.behind, self._event)
        start = asyncio.get_event_loop().create_task
        self._keeping = start(self._guarded(self._keep_experts))
        self._resizing: asyncio.Task[None] | None = None
        self._watching = start(self._guarded(self._watch_members))
        self._scaling = start(self._guarded(self._scale_experts))
        self._beating = start(self._guarded(self._beat))

    async def news(self, known: tuple[int, int], timeout_s: float) -> Record:
        """Answers as soon as the routing table is not the one that is `known` by its position, or after `timeout_s`."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._has_news(known)), timeout_s)
            except TimeoutError:
                return pack_news()
            return pack_news(stopping=True) if self._stopping else pack_news(self._encoded)

    async def announce(self, member_id: str, record: Record) -> Record:
        """A gateway, node or router says that it serves (an Announcement, packed); repeated about once a second.

        Returns:
            The generation of the data-plane keys that it is to have.

        Raises:
            FormatError: It is of a Manta whose words are not understood here.
        """
        try:
            said = self._hearing.read(member_id, record)
        except FormatError:
            self._members.lives(member_id, time.monotonic())
            raise
        self._num_heard += 1
        if self._members.heard(member_id, said, time.monotonic()):
            self._event(f"{said.role} {said.pid} serves")
            await self._publish()
            await self._ledger.keep_known(self._members.known)
        return {"keys_generation": self._rotation.generation}

    async def leave(self, member_id: str, snapshot: Snapshot | None) -> None:
        """A member stops serving.

        Args:
            snapshot: Its last one, if it can tell.
        """
        if snapshot is not None:
            self._members.tell(member_id, snapshot)
        said = self._members.remove(member_id)
        if said is not None:
            self._event(f"{said.role} {said.pid} has left")
            await self._publish()
            await self._ledger.keep_known(self._members.known)

    async def snapshots(self, member_id: str, own: Snapshot) -> list[tuple[Role, Snapshot]]:
        """Returns the last snapshots of all gateways and nodes but one, and the counts of those that are gone.

        Args:
            member_id: Whoever asks, to show all of them together.
            own: Its present snapshot: what has been shown is known here, and is still counted when it is gone.

        Raises:
            RuntimeError: Not everybody has announced itself again since this controller was restarted.
        """
        if not self._members.complete and not self._settled:
            raise RuntimeError("the controller was restarted, and has not heard of every gateway and node yet")
        self._members.tell(member_id, own)
        shown = self._members.snapshots(member_id)
        await self._ledger.keep_known(self._members.known)
        return shown

    async def service(self) -> Record:
        """Returns what it was last told to make, packed."""
        return pack(self._ledger.accepted)

    async def apply(self, record: Record, seen_version: str) -> None:
        """Starts to make the service into a changed one; `status` tells how far it is.

        Args:
            record: What `changes_between` allows to follow on the present one, packed.
            seen_version: The version that the change was planned against.

        Raises:
            ValueError: Another change is under way, or has been made since; or it is not understood (FormatError).
        """
        service = unpack(Service, record, "the changed service", exact=True)
        self._check_free(self._is_resizing)
        if self._ledger.accepted.version != seen_version:
            raise ValueError(f"service {self._service.name} was changed meanwhile; look at the plan again")
        failed_before = self._resize is not None and self._resize.state == "failed"
        self._start_resize(service, uncertain=failed_before)

    async def note(self, text: str) -> None:
        """Adds an event: what somebody else has decided for this service."""
        self._event(text)

    async def status(self) -> dict[str, object]:
        """Returns what runs, where, how loaded, and the last events, as plain data."""
        return {
            "name": self._service.name,
            "model": self._service.spec.model.served_name,
            "spec_version": self._service.version,
            "manta": MANTA,
            "state": "stopping" if self._stopping else "running",
            "keys": self._rotation.status(),
            "resize": None if self._resize is None else self._resize.as_dict(),
            "controller": {"pid": os.getpid(), "host": ray.get_runtime_context().get_node_id()},
            "experts": self._fleet.status(),
            "routers": self._members.status("router"),
            "attention_nodes": self._members.status("node"),
            "gateways": self._members.status("gateway"),
            "events": self._ledger.events.as_list(),
        }

    async def stop(self) -> list[str]:
        """Ends every expert actor and tells the members; then waits for `exit`, or for the members to be gone.

        Returns:
            The Serve applications that the members belong to: they are for the caller to delete.
        """
        self._stopping = True
        self._ledger.close()
        self._watch.stop()
        tasks = [task for task in (self._keeping, self._scaling, self._beating, self._resizing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(self._rotation.stop(), *tasks, return_exceptions=True)
        await self._fleet.stop()
        release_all(self._service.name)
        forget_data_plane_key(self._service.name)
        await self._ledger.forget()
        async with self._changed:
            self._changed.notify_all()
        return list(self._members.apps)

    async def ask(self, question: str, *given: Any) -> Any:
        """What was not asked of the first controllers. Raises ValueError: it cannot be done, or is not known here."""
        if question == "rotate_keys":
            self._check_free(False)  # or those that are not heard yet would be passed over
            return self._rotation.start()
        raise FormatError(f"the controller is of Manta {MANTA}, which does not know {question!r}: nothing was changed")

    def _check_free(self, is_changing: bool) -> None:
        """Raises ValueError: the service is being stopped or started, or `is_changing`."""
        if self._stopping or not self._settled or is_changing:
            what = "is being stopped" if self._stopping else "is being changed or started"
            raise ValueError(f"service {self._service.name} {what}; try again when it is done (manta status)")

    @property
    def _service(self) -> Service:
        """What is completely there, and what a change that fails goes back to."""
        return self._ledger.good

    def _has_news(self, known: tuple[int, int]) -> bool:
        return self._stopping or (self._encoded != b"" and self._table.position != tuple(known))

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
        num_adopted = await self._fleet.adopt()
        if num_adopted:
            self._event(f"took over {num_adopted} of {self._fleet.num_keepers} expert actors")
        if num_adopted or self._restarted:
            await asyncio.sleep(SETTLE_S)
        present = self._fleet.counts
        wanted = {shard.index: max(present[shard.index], shard.num_replicas) for shard in self._fleet.layout.shards}
        self._fleet.grow(self._fleet.layout, wanted)
        if self._fleet.others_run:
            self._event("expert actors of another layout run; they stay until those of this one are loaded beside them")
            while not self._fleet.complete:
                await asyncio.sleep(TICK_S)
        if self._ledger.has_uncommitted and not self._is_resizing:
            self._event(f"goes on with the change to version {self._ledger.accepted.version}")
            self._start_resize(self._ledger.accepted, uncertain=True)
        self._settled = True
        await self._publish()
        self._rotation.resume()
        if not self._is_resizing:
            self._sweep()

    def _sweep(self) -> None:
        """Never raises: what is left over then goes with the next change, or at the end."""
        self._try(self._fleet.sweep, "leftovers could not be ended")

    def _try(self, action: Callable[[], None], failed: str) -> None:
        try:
            action()
        except Exception as error:
            logger.exception(failed)
            self._event(f"{failed}: {cause_of(error)}", failed=True)

    @property
    def _is_resizing(self) -> bool:
        return self._resizing is not None and not self._resizing.done()

    async def _scale_experts(self) -> None:
        while True:
            autoscaling = self._service.spec.autoscaling
            slept_from_s = time.monotonic()
            await asyncio.sleep(autoscaling.interval_s)
            if time.monotonic() - slept_from_s > 2 * autoscaling.interval_s or self._is_resizing or not self._settled:
                self._scaler.forget()
            else:
                await self._scaler.scale(autoscaling)

    def _start_resize(self, service: Service, uncertain: bool) -> None:
        self._ledger.accept(service)
        resize = Resize(self._fleet, self._service, service, self._event, self._ledger.commit, uncertain)
        self._resize = resize.status
        self._event(f"change from version {self._service.version} to {service.version}")
        self._resizing = asyncio.get_running_loop().create_task(self._run_resize(resize))

    async def _run_resize(self, resize: Resize) -> None:
        try:
            await resize.run()
        finally:
            if not self._stopping:
                failure = resize.status.error if resize.status.state == "failed" else ""
                # If not, a controller that is started anew goes on with the change, or finds it made.
                self._try(lambda: self._ledger.end_change(failure), "the end of the change could not be stored")
                self._scaler.forget()
                self._sweep()

    async def _watch_members(self) -> None:
        """Drops members that have fallen silent; ends the service when it has been without any for too long."""
        self._watch.begin()
        while True:
            await asyncio.sleep(TICK_S)
            self._ledger.keep_events()
            limits = self._service.spec.limits
            if self._watch.drop_silent(limits):
                await self._publish()
            if self._watch.end_hung(limits):
                await self._ledger.keep_known(self._members.known)
            if await self._watch.is_over(limits):
                await self._end()
                return

    async def _beat(self) -> None:
        """Shows, where members find it without this process, that it hears members (`cluster.suspicion`)."""
        num_heard = -1
        while True:
            if num_heard != self._num_heard:
                num_heard = self._num_heard
                await self._ledger.keep_beat(num_heard)
            await asyncio.sleep(TICK_S)

    async def _end(self) -> None:
        if not self._stopping:
            await self.stop()
        ray.get_runtime_context().current_actor.exit.remote()

    async def _publish(self) -> None:
        """Makes the routing table anew and wakes whoever waits for it."""
        if not self._settled or self._stopping:
            return
        async with self._changed:
            routers, nodes = self._members.addresses("router"), self._members.addresses("node")
            self._table = routing_table(
                (self._table.epoch, self._table.version + 1),
                self._fleet.layout.version,
                self._fleet.in_use(),
                routers,
                nodes,
            )
            self._encoded = encode_table(self._table)
            self._changed.notify_all()

    def _event(self, text: str, failed: bool = False) -> None:
        text = printable(text)
        logger.info("%s", text)
        self._ledger.events.note(text, failed, time.time())
