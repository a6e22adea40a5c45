"""The Router Serve deployment: reads the gates, then serves on the data plane in a thread of its own."""

import asyncio
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve

from model.config import MixtralConfig
from transport.membership import Join, Membership
from transport.worker import DataPlaneThread

# Whoever builds the application imports this file and needs no torch, which takes seconds to import: only loading does.
if TYPE_CHECKING:
    from router.server import RouterServer

READY_CHECK_S = 10.0
ANNOUNCED_CHECK_S = 1.0


@dataclass(frozen=True)
class RouterDeploymentSettings:
    """What the service file says about routers, resolved.

    Args:
        dtype: `float32` or `bfloat16`.
        degrade: Whether `experts.on_missing` is `degrade`.
    """

    directory: Path
    config: MixtralConfig
    dtype: str
    recovery_timeout_s: float
    degrade: bool


@serve.deployment
class RouterReplica:
    """Holds the gates; scatters rows to the experts, gathers and combines."""

    async def __init__(self, settings: RouterDeploymentSettings, join: Join) -> None:
        self._membership = membership = join()
        self._server = _load(settings, membership)
        self._thread = DataPlaneThread("router", self._run, on_end=membership.leave)
        self._thread.start()
        threading.Thread(target=self._announce, name="manta-announce", daemon=True).start()
        membership.watch(self._server.update)
        # Serve lets an old replica go once this one is up: not before the others have been told of it.
        while self._thread.alive and not await asyncio.to_thread(membership.wait_announced, ANNOUNCED_CHECK_S):
            continue

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)
        with torch.inference_mode():
            self._server.run()

    def _announce(self) -> None:
        """Tells the nodes only once every expert is connected: what is announced can serve.

        Where rows may go without missing experts, some must do after a while.
        """
        while not self._server.wait_ready(READY_CHECK_S):
            if not self._thread.alive:
                return
            if self._server.degraded:
                break
        self._membership.announce("router", self._server.address, self._server.snapshot)

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: The router's thread has died; Serve then replaces this replica.
        """
        self._thread.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, if the number of routers follows the load."""
        return self._server.load()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):  # else it was not loaded
            self._membership.leave()
            self._server.stop()


def _load(settings: RouterDeploymentSettings, membership: Membership) -> "RouterServer":
    import torch

    from checkpoint.reader import CheckpointReader
    from checkpoint.weights import read_gates
    from model.dtypes import torch_dtype
    from router.server import RouterServer

    torch.set_num_threads(1)
    gates = read_gates(CheckpointReader(settings.directory), settings.config, torch_dtype(settings.dtype))
    return RouterServer(
        gates,
        settings.config.top_k,
        membership.key(),
        membership.tcp_host(),
        settings.recovery_timeout_s,
        settings.degrade,
    )
