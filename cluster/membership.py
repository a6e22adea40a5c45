"""A process's connection to the controller: it announces itself and hears of the others. Control plane only."""

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from cluster.backoff import Backoff
from cluster.causes import cause_of
from cluster.controller import controller_of
from cluster.members import ANNOUNCE_INTERVAL_S, Announcement
from cluster.messages import NO_TABLE, read_news
from cluster.names import NAMESPACE, controller_name
from cluster.patience import answered
from cluster.plain import SAID, FormatError, pack
from cluster.resolve import Service
from cluster.secret import data_plane_keys
from cluster.stored import stored_beat
from cluster.suspicion import Suspicion
from transport.address import Address
from transport.credentials import Credentials
from transport.hosts import interface_for_peers
from transport.membership import Role, Snapshot
from transport.strangers import refuse_open
from transport.table import RoutingTable
from transport.tls import TlsFiles, load_tls

logger = logging.getLogger(__name__)

ANNOUNCE_TIMEOUT_S = 5.0
STORE_TIMEOUT_S = 1.0  # a member that waited longer for Ray's store between announcements would be taken for hung
SNAPSHOTS_TIMEOUT_S = 5.0  # half of what Prometheus waits for a scrape unless told
POLL_TIMEOUT_S = 20.0  # a long poll that long without news is asked again
RETRY_S = 0.5
UNREACHABLE = (RayError, GetTimeoutError, ValueError)  # ValueError: Ray's, for an actor that has just gone


@dataclass(frozen=True)
class JoinService:
    """Implements `transport.membership.Join`. Kept by Serve, which may start a part of a later Manta with it.

    Args:
        name: Of the service.
        loopback: Whether every part is on this host.
        record: The Service, packed, for a controller that has to be started.
        refuses_open: Whether to refuse a cluster that lets strangers in: nobody has looked before.
        tls: Certificates for connections between hosts; None: there are none.
    """

    name: str
    loopback: bool
    record: dict[str, Any]
    refuses_open: bool = False
    tls: TlsFiles | None = None

    def __call__(self) -> "ControllerMembership":
        if self.refuses_open:
            refuse_open(ray.get_runtime_context().gcs_address)
        return ControllerMembership(self)


def join_service(service: Service, refuses_open: bool = False) -> JoinService:
    """Returns what the parts of a service take part with; `refuses_open` as in JoinService."""
    return JoinService(service.name, service.loopback, pack(service), refuses_open, service.tls)


class ControllerMembership:
    """Implements `transport.membership.Membership` over the named controller actor, which it starts if there is none.

    Its threads are daemons: they keep no process from ending. Nothing that goes wrong ends them before `leave`: without
    them, this process would go on with an old routing table, or be taken for hung.
    """

    def __init__(self, service: JoinService) -> None:
        self._service = service
        keys = data_plane_keys(service.name)
        self._keys_generation, self._taking_keys = keys.generation, threading.Lock()
        self._credentials = Credentials(*keys.as_bytes, tls=load_tls(service.tls))
        self._member_id = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._left = threading.Event()
        self._announced = threading.Event()
        self._service_stops = False
        self._snapshot: Callable[[], Snapshot] = dict
        self._last: Snapshot = {}
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
        self._snapshot, args = snapshot, (role, address, lives)
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

    def _figures(self) -> Snapshot:
        """Returns the present snapshot, or the one before: who has none for the moment lives all the same."""
        try:
            self._last = self._snapshot()
        except Exception:
            logger.warning("no figures at the moment; the last ones are told again", exc_info=True)
        return self._last

    def _controller(self) -> Any:
        """Returns the controller, started anew if it is gone for good. Not once the service is being stopped."""
        handle = self._handle  # another thread may take it away in between
        if handle is None:
            handle = self._handle = controller_of(self._service.name, self._service.record)
        return handle

    def _lost_controller(self, error: Exception, backoff: Backoff, so: str) -> None:
        """Says so, and waits: longer and longer where another controller would have to be started each time."""
        logger.warning("the controller does not answer (%s); %s", cause_of(error), so)
        if not self._service_stops:
            self._handle = None
        self._left.wait(backoff.pause_s(0.0) if isinstance(error, ActorDiedError) else RETRY_S)

    def _failed(self, error: Exception, backoff: Backoff, what: str) -> None:
        """Goes on after something that nobody foresaw, or that another Manta said, with a pause."""
        if isinstance(error, FormatError):
            logger.warning("%s: %s", what, error)
        else:
            logger.error("%s", what, exc_info=error)
        self._left.wait(backoff.pause_s(0.0))

    def _watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None]) -> None:
        known, backoff = NO_TABLE, Backoff()
        while not self._left.is_set():
            try:
                call = self._controller().news.remote(known, POLL_TIMEOUT_S)
                said = ray.get(call, timeout=2 * POLL_TIMEOUT_S)
            except UNREACHABLE as error:
                self._lost_controller(error, backoff, "going on with the last routing table")
                continue
            except Exception as error:
                self._failed(error, backoff, "no news; going on with the last routing table")
                continue
            try:
                news = read_news(said)
                if news.stopping:
                    self._service_stops = True
                    on_stop()
                    return
                if news.table is not None and not self._left.is_set():
                    known = news.table.position
                    on_table(news.table)
                if not self._announced.is_set():  # nobody tells it of other keys yet, and it may need them to be ready
                    self._take_keys()
                backoff = Backoff()
            except Exception as error:
                self._failed(error, backoff, "a routing table was not taken over; going on with the one before")

    def _announce(self, role: Role, address: Address | None, lives: Callable[[], bool]) -> None:
        backoff = Backoff()
        suspicion = Suspicion(lambda: answered(lambda: stored_beat(self._service.name), STORE_TIMEOUT_S))
        while not self._left.is_set():
            try:
                if not lives():
                    logger.warning("the data plane of this process hangs; it is not announced")
                    self._left.wait(RETRY_S)
                    continue
                if self._announce_once(role, address, backoff, suspicion):
                    backoff = Backoff()
            except Exception as error:
                self._failed(error, backoff, "not announced; announcing again")

    def _announce_once(self, role: Role, address: Address | None, backoff: Backoff, suspicion: Suspicion) -> bool:
        """Returns whether the controller has answered; if not, a pause was made."""
        context, app = ray.get_runtime_context(), serve.get_replica_context().app_name
        host, actor = context.get_node_id(), context.get_actor_name() or ""
        figures = self._figures()
        announcement = Announcement(role, address, os.getpid(), host, app, actor, figures, self._keys_generation)
        said = pack(announcement, SAID)
        if self._left.is_set():  # meanwhile
            return False
        controller = None
        try:
            controller = self._controller()
            answer = ray.get(controller.announce.remote(self._member_id, said), timeout=ANNOUNCE_TIMEOUT_S)
        except UNREACHABLE as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, FormatError):
                logger.warning("the controller does not understand this process: %s", error.cause)
                suspicion.clear()
                self._left.wait(ANNOUNCE_INTERVAL_S)  # no longer: to the controller, who is silent hangs
                return True
            # One that has not answered yet may just be starting.
            if isinstance(error, GetTimeoutError) and self._announced.is_set():
                if suspicion.unanswered(time.monotonic()):
                    self._end_hung(controller)
            else:
                suspicion.clear()
            self._lost_controller(error, backoff, "announcing again")
            return False
        suspicion.clear()
        self._announced.set()
        if isinstance(answer, Mapping) and answer.get("keys_generation", 0) > self._keys_generation:  # pyright: ignore[reportUnknownMemberType]
            try:
                self._take_keys()
                return True  # told at once: all others wait for it
            except Exception as error:  # goes on as it is; the controller says who does not follow
                logger.warning("the next data-plane keys were not taken, and are asked for again: %s", cause_of(error))
        self._left.wait(ANNOUNCE_INTERVAL_S)
        return True

    def _take_keys(self) -> None:
        """Takes the data-plane keys of now: they may be others. Callable from any thread."""
        with self._taking_keys:
            keys = answered(lambda: data_plane_keys(self._service.name), STORE_TIMEOUT_S)
            self._credentials.replace(keys.as_bytes)
            self._keys_generation = keys.generation

    def _end_hung(self, controller: Any) -> None:
        """Ends a controller that hangs, for Ray to start it again. Others may do the same at the same time."""
        logger.warning("the controller hangs; it is started again")
        try:
            ray.kill(controller, no_restart=False)
        except UNREACHABLE as error:
            logger.info("the controller is gone already: %s", cause_of(error))
