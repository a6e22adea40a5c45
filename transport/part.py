"""A router or an attention node, from when it is loaded until it leaves: what the two have in common."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from transport.address import Address
from transport.membership import Membership, Role, Snapshot
from transport.table import RoutingTable
from transport.worker import DataPlaneThread

logger = logging.getLogger(__name__)

READY_CHECK_S = 10.0
ANNOUNCED_CHECK_S = 1.0


class PartServer(Protocol):
    """The data-plane side of a part; all but `run` is callable from any thread."""

    @property
    def address(self) -> Address: ...

    def run(self) -> None:
        """Serves until `stop`; called in the thread that owns everything."""
        ...

    def stop(self) -> None: ...

    def update(self, table: RoutingTable) -> None:
        """Takes over a new routing table."""
        ...

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until it is connected to whatever it needs."""
        ...

    def snapshot(self) -> Snapshot: ...

    def lives(self) -> bool:
        """Returns whether the thread that runs it does not hang; may take a second."""
        ...


class Part:
    """Serves in a thread of its own, announces itself once it can serve, hears of the others, leaves.

    Args:
        ready_enough: Whether it can serve though it is still not ready after a while.
    """

    def __init__(
        self, role: Role, server: PartServer, membership: Membership, ready_enough: Callable[[], bool] = lambda: False
    ) -> None:
        self._role: Role = role
        self._server = server
        self._membership = membership
        self._ready_enough = ready_enough
        self._failure: Exception | None = None
        self._thread = DataPlaneThread(role, self._run, on_end=membership.leave)

    async def start(self) -> None:
        """Starts to serve; returns once the others have been told: Serve lets the part that this one replaces go then.

        Returns as well if it can never be announced: `check` says why.
        """
        self._thread.start()
        threading.Thread(target=self._announce, name="manta-announce", daemon=True).start()
        self._membership.watch(self._server.update)
        while self._thread.alive and self._failure is None:
            if await asyncio.to_thread(self._membership.wait_announced, ANNOUNCED_CHECK_S):
                return

    def check(self) -> None:
        """Does nothing while it serves.

        Raises:
            RuntimeError: Its thread has ended, or it could not be announced; says why.
        """
        self._thread.check()
        if self._failure is not None:
            raise RuntimeError(f"the {self._role} could not be announced: {self._failure!r}")

    def leave(self) -> None:
        """Ends it, and tells the others."""
        self._membership.leave()
        self._server.stop()

    def _run(self) -> None:
        import torch  # takes seconds: whoever only builds the application has not to wait for it

        torch.set_num_threads(1)
        with torch.inference_mode():
            self._server.run()

    def _announce(self) -> None:
        """Tells the others only once it is connected: what is announced can serve."""
        try:
            while not self._server.wait_ready(READY_CHECK_S):
                if not self._thread.alive:
                    return
                if self._ready_enough():
                    break
            self._membership.announce(self._role, self._server.address, self._server.snapshot, self._server.lives)
        except Exception as error:  # nobody waits for this thread: `check` has it replaced
            logger.exception("the %s could not be announced", self._role)
            self._failure = error
