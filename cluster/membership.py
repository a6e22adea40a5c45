"""A process's connection to the controller: it announces itself and hears of the others. Control plane only."""

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayError

from cluster.causes import cause_of
from cluster.controller import News, start_controller
from cluster.members import ANNOUNCE_INTERVAL_S, Announcement
from cluster.names import NAMESPACE, controller_name
from cluster.resolve import Service
from cluster.secret import data_plane_key
from transport.address import Address
from transport.credentials import Credentials
from transport.hosts import interface_for_peers
from transport.membership import Role, Snapshot
from transport.strangers import refuse_open
from transport.table import RoutingTable

logger = logging.getLogger(__name__)

ANNOUNCE_TIMEOUT_S = 5.0
SNAPSHOTS_TIMEOUT_S = 5.0  # half of what Prometheus waits for a scrape unless told
# A controller that has not answered so many announcements in a row hangs: it is ended, and Ray starts it again.
MAX_UNANSWERED = 2
POLL_TIMEOUT_S = 20.0  # a long poll that long without news is asked again
RETRY_S = 0.5
NO_TABLE = (-1, -1)  # the position of none
UNREACHABLE = (RayError, GetTimeoutError, ValueError)  # ValueError: Ray's, for an actor that has just gone


@dataclass(frozen=True)
class JoinService:
    """Implements `transport.membership.Join`.

    Args:
        refuses_open: Whether to refuse a cluster that lets strangers in: nobody has looked before.
    """

    service: Service
    refuses_open: bool = False

    def __call__(self) -> "ControllerMembership":
        if self.refuses_open:
            refuse_open(ray.get_runtime_context().gcs_address)
        return ControllerMembership(self.service)


class ControllerMembership:
    """Implements `transport.membership.Membership` over the named controller actor, which it starts if there is none.

    Its threads are daemons: they keep no process from ending.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._credentials = Credentials(data_plane_key(service.name))
        self._member_id = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._left = threading.Event()
        self._announced = threading.Event()
        self._service_stops = False
        self._snapshot: Callable[[], Snapshot] = dict
        self._handle: Any = None

    def credentials(self) -> Credentials:
        return self._credentials

    def tcp_host(self) -> str | None:
        return None if self._service.loopback else interface_for_peers()

    def watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None] = lambda: None) -> None:
        threading.Thread(target=self._watch, args=(on_table, on_stop), name="manta-watch", daemon=True).start()

    def announce(
        self,
        role: Role,
        address: Address | None,
        snapshot: Callable[[], Snapshot],
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        self._snapshot, args = snapshot, (role, address, snapshot, lives)
        threading.Thread(target=self._announce, args=args, name="manta-heartbeat", daemon=True).start()

    def wait_announced(self, timeout_s: float) -> bool:
        return self._announced.wait(timeout_s)

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        return await asyncio.wait_for(self._ask_snapshots(), SNAPSHOTS_TIMEOUT_S)

    async def _ask_snapshots(self) -> list[tuple[Role, Snapshot]]:
        controller = await asyncio.to_thread(self._controller)
        return await controller.snapshots.remote(self._member_id, self._snapshot())

    def leave(self) -> None:
        if self._left.is_set():
            return
        self._left.set()
        try:
            controller = ray.get_actor(controller_name(self._service.name), NAMESPACE)
            controller.leave.remote(self._member_id, self._last_snapshot())
        except (*UNREACHABLE, RuntimeError) as error:
            logger.info("the controller is gone already: %s", cause_of(error))

    def _last_snapshot(self) -> Snapshot | None:
        try:
            return self._snapshot()
        except Exception:
            logger.warning("no last figures: what was counted since the last announcement is lost", exc_info=True)
            return None

    def _controller(self) -> Any:
        """Returns the controller, started anew if it is gone for good. Not once the service is being stopped."""
        handle = self._handle  # another thread may take it away in between
        if handle is None:
            handle = self._handle = start_controller(self._service)
        return handle

    def _lost_controller(self, error: Exception, so: str) -> None:
        logger.warning("the controller does not answer (%s); %s", cause_of(error), so)
        if not self._service_stops:
            self._handle = None
        self._left.wait(RETRY_S)

    def _watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None]) -> None:
        known = NO_TABLE
        while not self._left.is_set():
            try:
                call = self._controller().news.remote(known, POLL_TIMEOUT_S)
                news: News = ray.get(call, timeout=2 * POLL_TIMEOUT_S)
            except UNREACHABLE as error:
                self._lost_controller(error, "going on with the last routing table")
                continue
            if news.stopping:
                self._service_stops = True
                on_stop()
                return
            if news.table is not None and not self._left.is_set():
                known = news.table.position
                on_table(news.table)

    def _announce(
        self, role: Role, address: Address | None, snapshot: Callable[[], Snapshot], lives: Callable[[], bool]
    ) -> None:
        context, app = ray.get_runtime_context(), serve.get_replica_context().app_name
        host, actor = context.get_node_id(), context.get_actor_name() or ""
        unanswered = 0
        while not self._left.is_set():
            if not lives():
                logger.warning("the data plane of this process hangs; it is not announced")
                self._left.wait(RETRY_S)
                continue
            said = Announcement(role, address, os.getpid(), host, app, actor, snapshot())
            if self._left.is_set():  # meanwhile
                return
            controller = None
            try:
                controller = self._controller()
                ray.get(controller.announce.remote(self._member_id, said), timeout=ANNOUNCE_TIMEOUT_S)
            except UNREACHABLE as error:
                # One that has not answered yet may just be starting.
                unanswered = unanswered + 1 if isinstance(error, GetTimeoutError) and self._announced.is_set() else 0
                if unanswered == MAX_UNANSWERED:
                    self._end_hung(controller)
                self._lost_controller(error, "announcing again")
            else:
                unanswered = 0
                self._announced.set()
                self._left.wait(ANNOUNCE_INTERVAL_S)

    def _end_hung(self, controller: Any) -> None:
        """Ends a controller that hangs, for Ray to start it again. Others may do the same at the same time."""
        logger.warning("the controller hangs; it is started again")
        try:
            ray.kill(controller, no_restart=False)
        except UNREACHABLE as error:
            logger.info("the controller is gone already: %s", cause_of(error))
