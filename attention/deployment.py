"""The AttentionNode Serve deployment: loads the dense model, then serves on the data plane in a thread of its own."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from ray import serve

from attention.dense import DenseModel
from attention.node import NodeServer
from attention.sizing import NodeSettings, make_cache
from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights
from model.config import MixtralConfig
from model.dtypes import torch_dtype
from transport.membership import Join


@dataclass(frozen=True)
class NodeDeploymentSettings:
    """What the service file says about attention nodes, resolved.

    Args:
        dtype: `float32` or `bfloat16`.
        device: `cpu` or `cuda`.
    """

    directory: Path
    config: MixtralConfig
    dtype: str
    device: str
    node: NodeSettings
    recovery_timeout_s: float
    request_timeout_s: float


@serve.deployment
class AttentionNode:
    """Embedding, attention, norms, LM head and sampling, with the rolling cache of the sequences it serves."""

    def __init__(self, settings: NodeDeploymentSettings, join: Join) -> None:
        torch.set_num_threads(1)
        self._membership = membership = join()
        device, dtype = torch.device(settings.device), torch_dtype(settings.dtype)
        weights = read_attention_weights(CheckpointReader(settings.directory), settings.config, dtype)
        self._server = NodeServer(
            DenseModel(settings.config, weights, device),
            make_cache(settings.node, settings.config, dtype, device),
            settings.node,
            membership.key(),
            membership.tcp_host(),
            settings.recovery_timeout_s,
            settings.request_timeout_s,
        )
        self._thread = threading.Thread(target=self._run, name="manta-node", daemon=True)
        self._thread.start()
        threading.Thread(target=self._announce, name="manta-announce", daemon=True).start()
        membership.watch(self._server.update)

    def _run(self) -> None:
        torch.set_num_threads(1)
        self._server.run()

    def _announce(self) -> None:
        """Tells the gateways only once a router is connected: what is announced can serve."""
        while not self._server.wait_ready(timeout_s=60.0):
            if not self._thread.is_alive():
                return
        self._membership.announce("node", self._server.address, self._server.snapshot)

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: The engine's thread has died; Serve then replaces this replica.
        """
        if not self._thread.is_alive():
            raise RuntimeError("the engine's thread has ended; see this replica's log for why")

    def __del__(self) -> None:
        self._membership.leave()
        self._server.stop()
