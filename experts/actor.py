"""The ExpertActor: a Ray actor that holds one shard. Control is Ray's; rows come over the data plane."""

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from model.config import MixtralConfig
from transport.address import Address
from transport.cores import available_cores
from transport.credentials import Credentials
from transport.tls import TlsFiles, load_tls

logger = logging.getLogger(__name__)

TICK_S = 1.0

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
        tls: Certificates for routers on other hosts; None: there are none.
        orphan_timeout_s: With neither a controller's call nor a router's connection for so long, the actor leaves by
            itself.
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
    tls: TlsFiles | None = None


@dataclass(frozen=True)
class Place:
    """Where an actor runs.

    Args:
        host: The Ray node.
        num_cores: Cores that it may use.
        started: Whether it has been told to start, which decides its core for good.
        core: The one that it is pinned to; None: any, or not decided yet.
    """

    host: str
    pid: int
    num_cores: int
    started: bool = False
    core: int | None = None


@ray.remote
class ExpertActor:
    """Loads in `start`, then serves until it is killed."""

    def __init__(self, settings: ExpertSettings) -> None:
        self._settings = settings
        self._server: ExpertServer | None = None
        self._key: bytes | None = None
        self._credentials: Credentials | None = None
        self._core: int | None = None
        self._progress = 0.0
        self._alone_s = 0.0
        self._starting = asyncio.Lock()
        self._orphan_watch = asyncio.get_event_loop().create_task(self._leave_when_orphaned())

    async def belongs_to(self, settings: ExpertSettings, key: bytes) -> bool:
        """Whether it holds (or may yet load) what is asked for, for the service that has this key."""
        return settings == self._settings and self._key in (None, key)

    async def start(self, key: bytes, core: int | None) -> Address:
        """Loads the weights, once, and starts serving; returns where.

        Raises:
            CheckpointError: The checkpoint is damaged; names the file, the tensor and the remedy.
        """
        self._alone_s = 0.0
        async with self._starting:
            if self._server is None:
                self._key, self._core = key, core
                self._credentials = Credentials(key, tls=load_tls(self._settings.tls))
                self._server = await asyncio.to_thread(self._load, self._credentials, core)
        return self._server.address

    async def set_keys(self, keys: tuple[bytes, ...]) -> None:
        """Takes other data-plane keys from now on, the best first; see `Credentials.replace`."""
        self._key = keys[0]
        if self._credentials is not None:
            self._credentials.replace(keys)

    async def address(self) -> Address | None:
        """Returns where it serves, or None while it is not loaded; for a controller that finds it running."""
        self._alone_s = 0.0
        return self._server.address if self._server is not None else None

    async def place(self) -> Place:
        """Returns where it runs."""
        host, started = ray.get_runtime_context().get_node_id(), self._key is not None
        return Place(host, os.getpid(), available_cores(), started, self._core)

    async def snapshot(self) -> Mapping[str, object]:
        """Returns figures for status, and `loaded`, the fraction of its weights that is read.

        Does not answer while the thread that serves hangs: to whoever asks, the whole actor does.
        """
        self._alone_s = 0.0
        if self._server is None:
            return {"loaded": self._progress}
        while not await asyncio.to_thread(self._server.lives):
            logger.warning("the thread that serves hangs")
        return {"loaded": 1.0, **self._server.snapshot()}

    async def watch(self) -> None:
        """Runs for as long as it serves; a caller learns of the actor's death from this call's failure.

        Raises:
            RuntimeError: It does not serve any more; says why.
        """
        while True:
            if self._server is not None:
                self._server.check()
            await asyncio.sleep(TICK_S)

    def _load(self, credentials: Credentials, core: int | None) -> "ExpertServer":
        import torch

        from experts.server import ExpertServer
        from experts.shard import load_shard
        from model.dtypes import torch_dtype
        from model.huge_pages import use_huge_pages
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
        use_huge_pages()
        server = ExpertServer(shard, device, credentials, None if settings.loopback else interface_for_peers(), core)
        server.start()
        return server

    def _set_progress(self, fraction: float) -> None:
        self._progress = fraction

    async def _has_routers(self) -> bool:
        """Whether a router is connected. A thread that hangs does not see it leave, so its connections do not count."""
        server = self._server
        return server is not None and server.has_routers and await asyncio.to_thread(server.lives)

    async def _leave_when_orphaned(self) -> None:
        """Ends the process. Counts its own ticks: time during which the whole host stood still does not count."""
        while self._alone_s <= self._settings.orphan_timeout_s:
            await asyncio.sleep(TICK_S)
            self._alone_s += TICK_S
            try:
                if await self._has_routers():
                    self._alone_s = 0.0
            except Exception:  # nobody waits for this task; it ends with the process
                logger.exception("cannot tell whether a router is connected")
        if self._server is not None:
            self._server.stop()
        os._exit(0)
