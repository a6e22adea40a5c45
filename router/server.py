"""The router's data-plane side: nodes' requests on one side, expert replicas on the other, in one thread."""

import logging
import threading
from collections.abc import Mapping

from router.core import Router
from router.levels import Gates
from transport.address import Address
from transport.busy import BusyClock
from transport.credentials import Credentials
from transport.link import ANSWER_TIMEOUT_S
from transport.loop import Loop
from transport.pulse import Pulse
from transport.replicas import Replicas
from transport.socket import RequestServer, SocketPeer
from transport.table import Newest, RoutingTable

logger = logging.getLogger(__name__)


class RouterServer:
    """Serves attention nodes.

    Args:
        gates: What chooses a row's experts (`load_gates`).
        tcp_host: The interface for nodes on other hosts; None: this host only.
        recovery_timeout_s: `limits.recovery_timeout_s`.
        degrade: Whether rows go without missing experts (`experts.on_missing`).
        answer_timeout_s: How long an expert actor may leave a call unanswered, until its rows go to another replica
            (`limits.answer_timeout_s`).
    """

    def __init__(
        self,
        gates: Gates,
        credentials: Credentials,
        tcp_host: str | None,
        recovery_timeout_s: float,
        degrade: bool = False,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._loop = Loop()
        self._credentials = credentials
        self._answer_timeout_s = answer_timeout_s
        self._experts = Replicas(self._connect, self._loop.call_later, recovery_timeout_s)
        self._router = Router(gates, self._experts, degrade)
        self._server = RequestServer(self._loop, "router", credentials, tcp_host, self._router.serve)
        self._tables = Newest()
        self._refused = ""
        self._ready = threading.Event()
        self.degraded = False
        """Whether it can serve, but not with all experts; readable from any thread."""
        self._busy = BusyClock()
        self._pulse = Pulse(self._loop, self._busy)

    @property
    def address(self) -> Address:
        return self._server.address

    def update(self, table: RoutingTable) -> None:
        """Takes over a routing table that is newer than all before; callable from any thread.

        One whose shards do not cover the experts is refused: the one before is kept, and `snapshot` tells why.
        """
        if table.shards:
            self._loop.post(lambda: self._update(table))

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until every shard has a connected replica; callable from any thread."""
        return self._ready.wait(timeout_s)

    def lives(self) -> bool:
        """Returns whether the thread that runs it does not hang; callable from any other thread, may take a second."""
        return self._pulse.beats()

    def stop(self) -> None:
        """Ends `run`; callable from any thread."""
        self._loop.stop()

    def snapshot(self) -> Mapping[str, object]:
        """Returns figures for status; callable from any thread."""
        return {
            "rows_per_expert": list(self._router.rows_per_expert),
            "degraded_rows_total": self._router.num_degraded_rows,
            "utilization": self._busy.utilization(),
            **({"refused_table": self._refused} if self._refused else {}),
        }

    def load(self) -> dict[str, float]:
        """Returns what autoscaling goes by (`cluster.scaling.Load`); callable from any thread.

        What waits for a router is not counted: nodes wait for its answers, so little ever does.
        """
        return {"utilization": self._busy.utilization(), "queued": 0.0}

    def run(self) -> None:
        """Serves until `stop`; to be called in the thread that owns everything."""
        self._busy.follow_thread()
        try:
            self._loop.run_forever()
        finally:
            self._server.close()
            self._experts.close()

    def _update(self, table: RoutingTable) -> None:
        if not self._tables.is_newer(table):
            return
        try:
            self._router.update(table.shards, self._note_state)
            self._refused = ""
        except ValueError as error:  # ours to survive: every other router was sent the same table
            self._refused = str(error)
            logger.error("table %s is refused, and the one before kept: %s", table.position, error)

    def _connect(self, address: Address) -> SocketPeer:
        return SocketPeer(
            self._loop,
            address,
            self._credentials,
            "router",
            self._expert_changed,
            self._answer_timeout_s,
            calls_expire=True,
        )

    def _expert_changed(self) -> None:
        self._experts.retry_waiting()
        self._note_state()

    def _note_state(self) -> None:
        if self._router.ready:
            self._ready.set()
        self.degraded = self._router.degraded
