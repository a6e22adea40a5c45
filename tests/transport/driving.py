"""Turns loops in tests, and talks to servers by hand."""

import socket
import time
from collections.abc import Callable

import torch
from torch import Tensor

from protos.dispatch_pb2 import ExpertRows, Header
from transport.address import Address
from transport.base import Answer, Request
from transport.credentials import Credentials
from transport.frames import Frame, FrameReader
from transport.handshake import ClientHandshake
from transport.loop import Loop
from transport.socket import SocketPeer
from transport.tensors import answer_header

CREDENTIALS = Credentials(b"k" * 32)

Answers = list[Answer]


def turn_until(done: Callable[[], bool], *loops: Loop, timeout_s: float = 30.0) -> None:
    """Turns the loops until `done()`; fails the test after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    wait_s = 0.1 if len(loops) == 1 else 0.0
    while not done():
        assert time.monotonic() < deadline_s, f"not done within {timeout_s:g} s"
        for loop in loops:
            loop.run_once(wait_s)


def connected(loop: Loop, address: Address, credentials: Credentials = CREDENTIALS) -> SocketPeer:
    """Returns a peer that is ready."""
    peer = SocketPeer(loop, address, credentials, "node")
    turn_until(lambda: peer.ready, loop)
    return peer


def expert_rows(rows_TD: Tensor) -> Header:
    """Returns the header of a call that any service of these tests takes."""
    return Header(expert_rows=ExpertRows(rows=answer_header(rows_TD).rows))


def random_rows(num_rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def echo(requests: list[Request]) -> None:
    """A service that answers with the rows it gets."""
    for request in requests:
        request.responder.reply(request.rows_TD)


def echo_without_expert_3(requests: list[Request]) -> None:
    """A service that answers with the rows it gets, and says that expert 3 was missing."""
    for request in requests:
        request.responder.reply(request.rows_TD, (3,))


def read_frame(sock: socket.socket) -> Frame | None:
    """Waits for one frame; None at the end of the stream."""
    reader = FrameReader()
    frame = None
    while frame is None:
        count = sock.recv_into(reader.space)
        if count == 0:
            return None
        frame = reader.advance(count)
    return frame


def dial(address: Address) -> socket.socket:
    """Connects as a stranger would: a blocking socket, and nothing said yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(30.0)
    sock.connect(address.unix_path)
    return sock


def start_handshake(credentials: Credentials = CREDENTIALS) -> ClientHandshake:
    return ClientHandshake(credentials, "node")
