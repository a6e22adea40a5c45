"""A proxy for links, in the middle of one connection or of many: it delays, slows, cuts, damages and half-opens them.

It runs on a `Loop`: that of a test, or one in a thread of its own (`proxy_thread`).
"""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transport.address import Address, this_host_id
from transport.loop import READ, WRITE, Loop

Direction = Literal["to server", "to client"]
CHUNK_BYTES = 1 << 16


@dataclass
class Faults:
    """What is done to what passes; may be changed at any time, from any thread.

    Args:
        delay_s: Everything comes so much later, in its order.
        bytes_per_s: How much passes in each direction; None: as much as comes.
        cuts: One entry for each connection that is made, in order: after how many bytes of which direction both ends
            are closed. Later connections are not cut.
        always_cut: The same for every connection that has no entry; the numbers are taken in rotation.
        flips: As `cuts`: a bit of that byte is turned, and it is passed on.
        silent: Everything is taken from both ends, and nothing is passed on; the connections stay.
        silent_direction: The same for one direction.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cuts: deque[tuple[Direction, int] | None] = field(default_factory=deque[tuple[Direction, int] | None])
    always_cut: deque[tuple[Direction, int]] = field(default_factory=deque[tuple[Direction, int]])
    flips: deque[tuple[Direction, int] | None] = field(default_factory=deque[tuple[Direction, int] | None])
    silent: bool = False
    silent_direction: Direction | None = None


class LinkProxy:
    """Passes connections on to a process's address, with `faults`.

    Args:
        over_tcp: Whether both halves are TCP; else both are Unix sockets.
    """

    def __init__(self, loop: Loop, target: Address, over_tcp: bool = False) -> None:
        self.loop = loop
        self.faults = Faults()
        self.passed: dict[Direction, int] = {"to server": 0, "to client": 0}
        """Bytes that have been passed on."""
        self.num_connections = 0
        self._target = target
        self._over_tcp = over_tcp
        self._ends: set[_End] = set()
        if over_tcp:
            self._listening = socket.create_server(("127.0.0.1", 0))
            port = int(self._listening.getsockname()[1])
            self.address = replace(target, host_id="elsewhere", tcp_host="127.0.0.1", tcp_port=port)
        else:
            path = f"{target.unix_path}.p{id(self) % 10000}"
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(path)
            self._listening.listen()
            self.address = replace(target, host_id=this_host_id(), unix_path=path)
        self._listening.setblocking(False)
        loop.watch(self, READ)

    def fileno(self) -> int:
        return self._listening.fileno()

    def on_ready(self, events: int) -> None:
        del events
        inner, _ = self._listening.accept()
        outer = socket.socket(socket.AF_INET if self._over_tcp else socket.AF_UNIX)
        try:
            outer.connect(("127.0.0.1", self._target.tcp_port) if self._over_tcp else self._target.unix_path)
        except OSError:  # nobody is there: the client sees its connection end
            inner.close()
            outer.close()
            return
        self.num_connections += 1
        cut = self.faults.cuts.popleft() if self.faults.cuts else self._next_cut()
        flip = self.faults.flips.popleft() if self.faults.flips else None
        client, server = _End(self, inner, "to server"), _End(self, outer, "to client")
        client.other, server.other = server, client
        for end in (client, server):
            end.cut = cut[1] if cut and cut[0] == end.direction else None
            end.flip = flip[1] if flip and flip[0] == end.direction else None
            self._ends.add(end)

    def _next_cut(self) -> tuple[Direction, int] | None:
        if not self.faults.always_cut:
            return None
        self.faults.always_cut.rotate(-1)
        return self.faults.always_cut[-1]

    def forget(self, end: "_End") -> None:
        self._ends.discard(end)

    def reset(self) -> None:
        """Closes every connection; to be called in the loop's thread."""
        for end in list(self._ends):
            end.close()

    def close(self) -> None:
        """Ends everything; to be called in the loop's thread."""
        self.loop.unwatch(self)
        self._listening.close()
        self.reset()
        if not self._over_tcp:
            Path(self.address.unix_path).unlink(missing_ok=True)


class _End:
    """One end of a proxied connection: what is read here is written at the other one."""

    def __init__(self, proxy: LinkProxy, sock: socket.socket, direction: Direction) -> None:
        self.proxy = proxy
        self.direction: Direction = direction
        self.other: _End
        self.cut: int | None = None
        self.flip: int | None = None
        self._sock = sock
        self._num_read = 0
        self._outbox = bytearray()
        self._closed = False
        self._slowed = False
        sock.setblocking(False)
        proxy.loop.watch(self, READ)

    def fileno(self) -> int:
        return self._sock.fileno()

    def on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events != WRITE and not self._closed and not self._slowed:
            self._read()

    def _read(self) -> None:
        try:
            data = bytearray(self._sock.recv(CHUNK_BYTES))
        except BlockingIOError:
            return
        except OSError:
            data = bytearray()
        if not data:
            self.proxy.loop.call_later(self.proxy.faults.delay_s, self.close)
            return
        faults, start = self.proxy.faults, self._num_read
        self._num_read += len(data)
        if faults.silent or faults.silent_direction == self.direction:
            return
        if self.flip is not None and start <= self.flip < self._num_read:
            data[self.flip - start] ^= 0x10
        ends = self.cut is not None and self._num_read >= self.cut
        if ends and self.cut is not None:
            del data[max(0, self.cut - start) :]
        self._pass_on(data)
        if ends:
            self.proxy.loop.call_later(faults.delay_s, self.close)

    def _pass_on(self, data: bytearray) -> None:
        faults, loop = self.proxy.faults, self.proxy.loop
        self.proxy.passed[self.direction] += len(data)
        if faults.bytes_per_s is not None:
            self._slowed = True
            loop.watch(self, WRITE if self._outbox else 0)
            loop.call_later(len(data) / faults.bytes_per_s, self._go_on)
        loop.call_later(faults.delay_s, lambda: self.other.write(data))

    def _go_on(self) -> None:
        self._slowed = False
        self._watch()

    def write(self, data: bytearray) -> None:
        if not self._closed:
            self._outbox += data
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._outbox[:sent]
        self._watch()

    def _watch(self) -> None:
        if not self._closed:
            events = (0 if self._slowed else READ) | (WRITE if self._outbox else 0)
            self.proxy.loop.watch(self, events)

    def close(self) -> None:
        """Closes this end, and the other one."""
        if not self._closed:
            self._closed = True
            self.proxy.loop.unwatch(self)
            self._sock.close()
            self.proxy.forget(self)
            self.other.close()


@contextmanager
def proxy_thread(*targets: Address, over_tcp: bool = False) -> Iterator[list[LinkProxy]]:
    """Runs a proxy before each target, all in one thread of their own."""
    loop = Loop()
    proxies = [LinkProxy(loop, target, over_tcp) for target in targets]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxies
    finally:
        for proxy in proxies:
            loop.post(proxy.close)
        loop.post(loop.stop)
        thread.join()
        loop.close()
