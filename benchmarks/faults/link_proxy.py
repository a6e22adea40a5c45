"""Proxies between the parts of a service that delay, slow, cut and silence what goes through them.

A part is reached at the address that the routing table gives for it, so a proxy needs no more than to be named there in
its stead. It speaks bytes, not frames, over Unix sockets or over TCP.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from transport.address import Address, listen

PIECE_BYTES = 64 << 10
POLL_S = 0.02  # how soon a connection hears of another fault
CALL_TIMEOUT_S = 10.0
TCP_HOST = "127.0.0.1"
ELSEWHERE = "behind a proxy"  # no host of this name: whoever is to connect takes TCP

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a link, in both directions.

    Args:
        delay_s: How much later everything arrives.
        bytes_per_s: How much goes through; None: as much as comes.
        cut_after: After so many more bytes in one direction the connection breaks; None: never.
        silent: Nothing goes through, and nobody is told.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cut_after: int | None = None
    silent: bool = False


WHOLE = Fault()


class LinkProxy:
    """Stands before one part. `num_cut`: connections that it has broken.

    Args:
        over_tcp: Whether both sides of it are TCP, which the parts seal; else both are Unix sockets.
    """

    def __init__(self, target: Address, loop: asyncio.AbstractEventLoop, over_tcp: bool = False) -> None:
        self._target = target
        self._loop = loop
        self._over_tcp = over_tcp
        # The identity of the part itself, at another place.
        if over_tcp:
            self._listener = socket.create_server((TCP_HOST, 0))
            port = int(self._listener.getsockname()[1])
            self.address = replace(target, host_id=ELSEWHERE, tcp_host=TCP_HOST, tcp_port=port)
        else:
            own, (self._listener,) = listen("link", None)
            self.address = replace(target, unix_path=own.unix_path, tcp_host="", tcp_port=0)
        self.num_cut = 0
        self._fault = WHOLE
        self._generation = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def set(self, fault: Fault) -> None:
        """From now on the link has this fault, what is connected already too; callable from any thread."""
        self._fault, self._generation = fault, self._generation + 1

    async def start(self) -> None:
        """Begins to listen."""
        start = asyncio.start_server if self._over_tcp else asyncio.start_unix_server
        self._server = await start(self._accept, sock=self._listener)

    def reset(self) -> None:
        """Breaks every connection; callable from any thread but the proxies' own."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result(CALL_TIMEOUT_S)

    async def _reset(self) -> None:
        self.num_cut += len(self._connections)
        for task in list(self._connections):
            task.cancel()

    async def stop(self) -> None:
        """Ends everything."""
        assert self._server is not None, "`start` comes first"
        self._server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        if not self._over_tcp:
            Path(self.address.unix_path).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):  # cancelled: `reset` or `stop` ends it
                await self._connect(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over_tcp:
            far_reader, far_writer = await asyncio.open_connection(self._target.tcp_host, self._target.tcp_port)
        else:
            far_reader, far_writer = await asyncio.open_unix_connection(self._target.unix_path)
        ways = [asyncio.ensure_future(self._pump(*way)) for way in ((reader, far_writer), (far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes one direction on, until it ends or is cut."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        deliver = asyncio.ensure_future(_deliver(late, writer))
        passed, generation = 0, self._generation
        try:
            while piece := await reader.read(PIECE_BYTES):
                while self._fault.silent:
                    await asyncio.sleep(POLL_S)
                fault = self._fault
                if generation != self._generation:
                    passed, generation = 0, self._generation
                cut = fault.cut_after is not None and passed + len(piece) >= fault.cut_after
                piece = piece[: fault.cut_after - passed] if cut and fault.cut_after is not None else piece
                passed += len(piece)
                if fault.bytes_per_s is not None:  # before it arrives: several frames may come as one piece
                    await asyncio.sleep(len(piece) / fault.bytes_per_s)
                late.put_nowait((asyncio.get_running_loop().time() + fault.delay_s, piece))
                if cut:
                    await late.join()
                    self.num_cut += 1
                    return
            await late.join()
        finally:
            deliver.cancel()


async def _deliver(late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    while True:
        due_s, piece = await late.get()
        await asyncio.sleep(due_s - asyncio.get_running_loop().time())
        with suppress(OSError):  # the pump hears of it from its reader
            writer.write(piece)
            await writer.drain()
        late.task_done()


class Proxies:
    """A context with a thread of its own that turns proxies. Its methods are callable from any other thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[LinkProxy] = []

    def before(self, target: Address, over_tcp: bool = False) -> LinkProxy:
        """A proxy that listens for a part."""
        proxy = LinkProxy(target, self._loop, over_tcp)
        self._call(proxy.start())
        self._proxies.append(proxy)
        return proxy

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self._proxies:
            self._call(proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
