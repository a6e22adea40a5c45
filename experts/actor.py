"""The ExpertActor: a Ray actor that holds one shard. Control is Ray's; rows come over the data plane."""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from model.config import MixtralConfig
from transport.address import Address

# The controller imports this file and needs no torch, which takes seconds to import: only `_load` does.
if TYPE_CHECKING:
    from experts.server import ExpertServer


@dataclass(frozen=True)
class ExpertSettings:
    """What one shard holds and how it runs.

    Args:
        dtype: `float32` or `bfloat16`.
        device: `cpu` or `cuda`.
        loopback: Whether every router is on this host.
        orphan_timeout_s: With neither a controller's call nor rows for so long, the actor leaves by itself.
    """

    directory: Path
    config: MixtralConfig
    expert_ids: tuple[int, ...]
    slice_index: int
    num_slices: int
    dtype: str
    device: str
    orphan_timeout_s: float
    loopback: bool


@ray.remote
class ExpertActor:
    """Loads in `start`, then serves until it is killed."""

    def __init__(self, settings: ExpertSettings) -> None:
        self._settings = settings
        self._server: ExpertServer | None = None
        self._progress = 0.0
        self._called_s = time.monotonic()
        self._rows_seen = -1
        self._starting = asyncio.Lock()

    async def start(self, key: bytes, core: int | None) -> Address:
        """Loads the weights, once, and starts serving; returns where.

        Raises:
            CheckpointError: The checkpoint is damaged; names the file, the tensor and the remedy.
        """
        self._called_s = time.monotonic()
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.to_thread(self._load, key, core)
                asyncio.get_running_loop().create_task(self._leave_when_orphaned())
        return self._server.address

    async def address(self) -> Address | None:
        """Returns where it serves, or None while it is not loaded; for a controller that finds it running."""
        self._called_s = time.monotonic()
        return self._server.address if self._server is not None else None

    async def host(self) -> tuple[str, int]:
        """Returns the Ray node it runs on and its process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    async def snapshot(self) -> Mapping[str, object]:
        """Returns figures for status, and `loaded`, the fraction of its weights that is read."""
        self._called_s = time.monotonic()
        if self._server is None:
            return {"loaded": self._progress}
        return {"loaded": 1.0, **self._server.snapshot()}

    async def watch(self) -> None:
        """Returns when it stops serving; a caller learns of the actor's death from this call's failure."""
        while self._server is None or self._server.alive:
            await asyncio.sleep(1.0)
        raise RuntimeError("the expert's thread has ended; see this actor's log for why")

    def _load(self, key: bytes, core: int | None) -> "ExpertServer":
        import torch

        from experts.server import ExpertServer
        from experts.shard import load_shard
        from model.dtypes import torch_dtype
        from transport.hosts import interface_for_peers

        torch.set_num_threads(1)
        settings = self._settings
        device = torch.device(settings.device)
        shard = load_shard(
            settings.directory,
            settings.config,
            settings.expert_ids,
            settings.slice_index,
            settings.num_slices,
            torch_dtype(settings.dtype),
            device,
            self._set_progress,
        )
        server = ExpertServer(shard, device, key, None if settings.loopback else interface_for_peers(), core)
        server.start()
        return server

    def _set_progress(self, fraction: float) -> None:
        self._progress = fraction

    async def _leave_when_orphaned(self) -> None:
        timeout_s = self._settings.orphan_timeout_s
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 4))
            assert self._server is not None
            rows = self._server.snapshot()["rows_total"]
            if rows != self._rows_seen:
                self._rows_seen, self._called_s = int(str(rows)), time.monotonic()
            if time.monotonic() - self._called_s > timeout_s:
                os._exit(0)
