"""A process's connection to the controller: it announces itself and hears of the others. Control plane only."""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.controller import start_controller
from cluster.resolve import Service
from cluster.secret import data_plane_key
from transport.address import Address
from transport.membership import Role, Snapshot
from transport.hosts import interface_for_peers
from transport.table import RoutingTable

logger = logging.getLogger(__name__)

ANNOUNCE_INTERVAL_S = 1.0
POLL_TIMEOUT_S = 20.0  # a long poll that long without news is asked again
RETRY_S = 0.5


@dataclass(frozen=True)
class JoinService:
    """Implements `transport.membership.Join`."""

    service: Service

    def __call__(self) -> "ControllerMembership":
        return ControllerMembership(self.service)


class ControllerMembership:
    """Implements `transport.membership.Membership` over the named controller actor, which it starts if there is none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._member_id = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._stopped = threading.Event()

    def key(self) -> bytes:
        return data_plane_key(self._service.name)

    def tcp_host(self) -> str | None:
        return None if self._service.loopback else interface_for_peers()

    def watch(self, on_table: Callable[[RoutingTable], None]) -> None:
        threading.Thread(target=self._watch, args=(on_table,), name="manta-watch", daemon=True).start()

    def announce(self, role: Role, address: Address | None, snapshot: Callable[[], Snapshot]) -> None:
        args = (role, address, snapshot)
        threading.Thread(target=self._announce, args=args, name="manta-heartbeat", daemon=True).start()

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        return await self._controller().snapshots.remote(self._member_id)

    def leave(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._controller().leave.remote(self._member_id)

    def _controller(self) -> Any:
        return start_controller(self._service)

    def _watch(self, on_table: Callable[[RoutingTable], None]) -> None:
        stopped, version = self._stopped, -1
        while not stopped.is_set():
            try:
                table: RoutingTable | None = ray.get(
                    self._controller().table.remote(version, POLL_TIMEOUT_S), timeout=2 * POLL_TIMEOUT_S
                )
            except (RayError, TimeoutError, ValueError) as error:
                logger.warning("the controller does not answer (%s); going on with the last routing table", error)
                version = -1  # a restarted controller counts from the start
                stopped.wait(RETRY_S)
                continue
            if table is not None and not stopped.is_set():
                version = table.version
                on_table(table)

    def _announce(self, role: Role, address: Address | None, snapshot: Callable[[], Mapping[str, object]]) -> None:
        stopped = self._stopped
        while not stopped.is_set():
            try:
                call = self._controller().announce.remote(self._member_id, role, address, os.getpid(), snapshot())
                ray.get(call, timeout=POLL_TIMEOUT_S)
            except (RayError, TimeoutError, ValueError) as error:
                logger.warning("the controller does not answer (%s); announcing again", error)
            stopped.wait(ANNOUNCE_INTERVAL_S)
