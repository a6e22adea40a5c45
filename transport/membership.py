"""How a data-plane process takes part in the service: it announces itself and hears of the others. Implemented in `cluster/`."""

from collections.abc import Callable, Mapping
from typing import Protocol

from transport.address import Address
from transport.table import RoutingTable


class Membership(Protocol):
    """One process's connection to the control plane. Its calls are slow; none belongs on the hot path."""

    def key(self) -> bytes:
        """Returns the service's data-plane key."""
        ...

    def tcp_host(self) -> str | None:
        """Returns the interface that other hosts reach this process on; None when all of Ray is on this host."""
        ...

    def announce(self, role: str, address: Address) -> None:
        """Says that this process serves as `role` (`router`, `node`, `gateway`) at `address`; repeated as needed."""
        ...

    def watch(self, on_table: Callable[[RoutingTable], None]) -> None:
        """Calls `on_table`, from a thread of its own, with the present table and with each later one."""
        ...

    def report(self, source: Callable[[], Mapping[str, object]]) -> None:
        """Sends what `source` returns to the controller about once a second; for status and metrics."""
        ...

    def leave(self) -> None:
        """Says that this process stops serving."""
        ...
