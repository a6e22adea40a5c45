"""How a data-plane process takes part in the service: it announces itself and hears of the others.

Implemented in `cluster/`.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from transport.address import Address
from transport.credentials import Credentials
from transport.table import RoutingTable

Role = Literal["gateway", "node", "router"]
Snapshot = Mapping[str, object]


class Join(Protocol):
    """Plain data, sent to a process as an argument, from which it gets its membership."""

    def __call__(self) -> "Membership": ...


class Membership(Protocol):
    """One process's connection to the control plane. Its calls are slow; none belongs on the hot path."""

    def credentials(self) -> Credentials:
        """Returns what this process proves itself with on the data plane; the same object each time."""
        ...

    def tcp_host(self) -> str | None:
        """Returns the interface that other hosts reach this process on; None when all of Ray is on this host."""
        ...

    def watch(self, on_table: Callable[[RoutingTable], None], on_stop: Callable[[], None] = lambda: None) -> None:
        """Calls `on_table`, from a thread of its own, with the present routing table and with each later one.

        `on_stop` is called, from the same thread and as the last thing, when the whole service is being stopped.
        """
        ...

    def announce(
        self,
        role: Role,
        address: Address | None,
        snapshot: Callable[[], Snapshot],
        lives: Callable[[], bool] = lambda: True,
    ) -> None:
        """Says that this process serves as `role` at `address` (None: it accepts no connections).

        Repeated about once a second, from a thread of its own, each time with what `snapshot` returns: figures for
        status and metrics. Not while `lives` says no, which may take a second: whose data plane hangs is silent.
        """
        ...

    def wait_announced(self, timeout_s: float) -> bool:
        """Waits until the others have been told that this process serves; returns whether they have."""
        ...

    async def snapshots(self) -> list[tuple[Role, Snapshot]]:
        """Returns the last snapshot of every other gateway and of every node, and what those had counted that are gone.

        Raises:
            RuntimeError: Not all of them are known at the moment.
        """
        ...

    def leave(self) -> None:
        """Says that this process stops serving, and ends its threads. May be called again; never raises."""
        ...
