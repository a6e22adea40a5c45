"""The transports that `benchmarks.hop` compares: the measuring end of each. The other ends are in `echo.py`.

T rows, D elements each.
"""

import functools
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.hop import echo
from benchmarks.hop.runner import Transport
from protos.dispatch_pb2 import Header
from transport.address import Address
from transport.base import Answer, Peer
from transport.errors import PeerLost
from transport.frames import encode_head
from transport.local import LocalPeer
from transport.loop import Loop
from transport.socket import SocketPeer
from transport.tensors import expert_header, read_answer, rows_to_body

CONNECT_TIMEOUT_S = 30.0


def make_header(rows_TD: Tensor) -> Header:
    """The header that a router sends to an expert."""
    return expert_header(1, ((1, rows_TD.size(0)),), rows_TD)


class PeersHop:
    """Any of Manta's own transports: calls to `Peer`s, and `pump` until all answers are there."""

    def __init__(self, peers: list[Any], rows_TD: Tensor, pump: Callable[[], None]) -> None:
        self._peers: list[Peer] = peers
        self._rows_TD = rows_TD
        self._pump = pump
        self._answers: list[Answer] = []

    def round(self) -> None:
        answers = self._answers
        answers.clear()
        for peer in self._peers:
            peer.call(make_header(self._rows_TD), self._rows_TD, answers.append)
        while len(answers) < len(self._peers):
            self._pump()
        assert all(isinstance(answer, Tensor) for answer in answers), answers

    def ask_first(self) -> None:
        self._answers.clear()
        self._peers[0].call(make_header(self._rows_TD), self._rows_TD, self._answers.append)

    def watch_death(self, timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        while not self._answers and time.monotonic() < end_s:
            self._pump()
        return bool(self._answers) and isinstance(self._answers[0], PeerLost)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


def connect_local(addresses: list[Any], rows_TD: Tensor) -> PeersHop:
    """In this process: what is left when nothing is moved."""
    return PeersHop([LocalPeer(echo.echo_requests) for _ in addresses], rows_TD, lambda: None)


def connect_sockets(over_tcp: bool, addresses: list[Address], rows_TD: Tensor) -> PeersHop:
    """Manta's data plane."""
    loop = Loop()
    reached = [replace(address, host_id="elsewhere") if over_tcp else address for address in addresses]
    peers = [SocketPeer(loop, address, echo.CREDENTIALS, "router") for address in reached]
    end_s = time.monotonic() + CONNECT_TIMEOUT_S
    while not all(peer.ready for peer in peers):
        if time.monotonic() > end_s:
            raise TimeoutError("the echo processes did not answer the handshake")
        loop.run_once(1.0)
    return PeersHop(peers, rows_TD, loop.run_once)


def connect_ray(addresses: list[Any], rows_TD: Tensor) -> PeersHop:
    """Plain Ray actor calls, on a Ray of its own."""
    import ray

    from benchmarks.hop.ray import start_actors
    from transport.ray import RayPeer

    peers = [RayPeer(actor, timeout_s=30.0) for actor in start_actors(len(addresses))]

    def pump() -> None:
        for peer in peers:
            peer.poll()

    hop = PeersHop(peers, rows_TD, pump)
    hop.close = ray.shutdown
    return hop


class RawHop:
    """Blocking sockets, and the bytes of the same frames: the floor."""

    def __init__(self, addresses: list[Any], rows_TD: Tensor) -> None:
        self._sockets = [_connect_raw(address) for address in addresses]
        body = rows_to_body(rows_TD)
        self._parts = [encode_head(make_header(rows_TD), len(body)), body]
        self._num_bytes = sum(map(len, self._parts))
        self._buffer = bytearray(self._num_bytes)
        for sock in self._sockets:
            sock.sendall(echo.SIZE.pack(self._num_bytes))

    def round(self) -> None:
        for sock in self._sockets:
            if sock.sendmsg(self._parts) < self._num_bytes:
                raise ValueError("rows of this size need a sender that can wait; choose fewer for the raw transports")
        for sock in self._sockets:
            echo.receive_exactly(sock, memoryview(self._buffer))

    def ask_first(self) -> None:
        self._sockets[0].sendmsg(self._parts)

    def watch_death(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._sockets[0]], [], [], timeout_s)
        return bool(readable)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _connect_raw(address: str | tuple[str, int]) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    echo.tune(sock)
    sock.connect(address)
    return sock


class ZmqHop:
    """ZeroMQ with the same headers and tensors: what the data plane would be if it were built on it."""

    def __init__(self, addresses: list[str], rows_TD: Tensor) -> None:
        import zmq  # of the extra `dev`: only to compare with

        self._zmq = zmq
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._rows_TD = rows_TD
        self._sockets: list[Any] = []
        for address in addresses:
            sock = self._context.socket(zmq.DEALER)
            sock.linger = 0
            self._sockets.append(sock)
            if len(self._sockets) == 1:
                self._monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            sock.connect(address)
            self._poller.register(sock, zmq.POLLIN)

    def round(self) -> None:
        for sock in self._sockets:
            self._send(sock)
        left = len(self._sockets)
        while left:
            for sock, _ in self._poller.poll():
                header, body = sock.recv_multipart(copy=False)
                read_answer(header.bytes, body.buffer)
                left -= 1

    def _send(self, sock: Any) -> None:
        header = make_header(self._rows_TD).SerializeToString()
        sock.send_multipart([header, rows_to_body(self._rows_TD)], copy=False)

    def ask_first(self) -> None:
        self._send(self._sockets[0])

    def watch_death(self, timeout_s: float) -> bool:
        """ZeroMQ reconnects in silence; only a monitor socket beside each socket tells."""
        return bool(self._monitor.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        self._context.destroy(linger=0)


class GrpcHop:
    """gRPC with bytes for messages: one unary call, or one message of a stream, per peer."""

    def __init__(self, streams: bool, addresses: list[int], rows_TD: Tensor) -> None:
        import grpc

        self._channels = [grpc.insecure_channel(f"127.0.0.1:{port}", echo.GRPC_OPTIONS) for port in addresses]
        body = rows_to_body(rows_TD)
        self._message = encode_head(make_header(rows_TD), len(body)) + bytes(body)
        self._streams = [_GrpcStream(channel) for channel in self._channels] if streams else []
        self._calls = [channel.unary_unary(echo.GRPC_UNARY) for channel in self._channels]
        self._asked: Any = None

    def round(self) -> None:
        if self._streams:
            for stream in self._streams:
                stream.send(self._message)
            for stream in self._streams:
                next(stream.answers)
            return
        for future in [call.future(self._message) for call in self._calls]:
            future.result()

    def ask_first(self) -> None:
        if self._streams:
            self._streams[0].send(self._message)
        else:
            self._asked = self._calls[0].future(self._message)

    def watch_death(self, timeout_s: float) -> bool:
        import grpc

        try:
            if self._streams:
                next(self._streams[0].answers)
            else:
                self._asked.result(timeout_s)
        except grpc.RpcError:
            return True
        return False

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        for channel in self._channels:
            channel.close()


class _GrpcStream:
    """A bidirectional stream whose messages come from `send`."""

    def __init__(self, channel: Any) -> None:
        self._ready = threading.Semaphore(0)
        self._waiting: list[bytes | None] = []
        self.answers = channel.stream_stream(echo.GRPC_STREAM)(iter(self._next, None))

    def send(self, message: bytes | None) -> None:
        self._waiting.append(message)
        self._ready.release()

    def close(self) -> None:
        self.send(None)

    def _next(self) -> bytes | None:
        self._ready.acquire()
        return self._waiting.pop(0)


_ALL = [
    Transport("unix", "Manta, same host", echo.serve_sockets, functools.partial(connect_sockets, False)),
    Transport("tcp", "Manta, between hosts", echo.serve_sockets, functools.partial(connect_sockets, True)),
    Transport("raw-unix", "the floor: bytes only", echo.serve_raw_unix, RawHop),
    Transport("raw-tcp", "the floor: bytes only", echo.serve_raw_tcp, RawHop),
    Transport("zmq", "ZeroMQ, as Manta would use it", echo.serve_zmq, ZmqHop, "zmq"),
    Transport("grpc", "gRPC, bytes only", echo.serve_grpc, functools.partial(GrpcHop, False), "grpc"),
    Transport("grpc-stream", "gRPC streams, bytes only", echo.serve_grpc, functools.partial(GrpcHop, True), "grpc"),
    Transport("ray", "Ray actor calls", None, connect_ray, "ray"),
    Transport("local", "no process, no bytes moved", None, connect_local),
]
TRANSPORTS = {transport.name: transport for transport in _ALL}
