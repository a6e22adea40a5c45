"""The Router Serve deployment: reads the gates, then serves on the data plane in a thread of its own."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import serve

from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_gates
from model.config import MixtralConfig
from model.dtypes import torch_dtype
from router.server import RouterServer
from transport.membership import Join


@dataclass(frozen=True)
class RouterDeploymentSettings:
    """What the service file says about routers, resolved.

    Args:
        dtype: `float32` or `bfloat16`.
    """

    directory: Path
    config: MixtralConfig
    dtype: str
    recovery_timeout_s: float


@serve.deployment
class RouterReplica:
    """Holds the gates; scatters rows to the experts, gathers and combines."""

    def __init__(self, settings: RouterDeploymentSettings, join: Join) -> None:
        torch.set_num_threads(1)
        self._membership = membership = join()
        gates = read_gates(CheckpointReader(settings.directory), settings.config, torch_dtype(settings.dtype))
        self._server = RouterServer(
            gates, settings.config.top_k, membership.key(), membership.tcp_host(), settings.recovery_timeout_s
        )
        self._thread = threading.Thread(target=self._run, name="manta-router", daemon=True)
        self._thread.start()
        threading.Thread(target=self._announce, name="manta-announce", daemon=True).start()
        membership.watch(self._server.update)

    def _run(self) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            self._server.run()

    def _announce(self) -> None:
        """Tells the nodes only once every expert is connected: what is announced can serve."""
        while not self._server.wait_ready(timeout_s=60.0):
            if not self._thread.is_alive():
                return
        self._membership.announce("router", self._server.address, self._server.snapshot)

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: The router's thread has died; Serve then replaces this replica.
        """
        if not self._thread.is_alive():
            raise RuntimeError("the router's thread has ended; see this replica's log for why")

    def __del__(self) -> None:
        self._membership.leave()
        self._server.stop()
