"""The echo processes of `benchmarks.hop`: each serves one transport until it is killed.

Each function calls `report` with its address once it listens.
"""

import contextlib
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from transport.base import Request
from transport.credentials import Credentials
from transport.loop import Loop
from transport.socket import RequestServer
from transport.tensors import answer_header, read_call, rows_to_body

CREDENTIALS = Credentials(b"benchmark" * 4)
SIZE = struct.Struct("<Q")  # the first message of a raw connection: how long each further one is
GRPC_UNARY, GRPC_STREAM = "/hop/Unary", "/hop/Stream"
GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Report = Callable[[Any], None]


def echo_requests(requests: list[Request]) -> None:
    """A service that answers with the rows it gets."""
    for request in requests:
        request.responder.reply(request.rows_TD)


def serve_sockets(report: Report) -> None:
    """Manta's data plane, as an expert serves it."""
    loop = Loop()
    report(RequestServer(loop, "hop", CREDENTIALS, "127.0.0.1", echo_requests).address)
    loop.run_forever()


def serve_raw_unix(report: Report) -> None:
    """A blocking Unix socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = str(Path(tempfile.mkdtemp()) / "s")
    listener.bind(path)
    _serve_raw(listener, lambda: report(path))


def serve_raw_tcp(report: Report) -> None:
    """A blocking TCP socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    _serve_raw(listener, lambda: report(listener.getsockname()))


def _serve_raw(listener: socket.socket, listening: Callable[[], None]) -> None:
    listener.listen(1)
    listening()
    sock, _ = listener.accept()
    tune(sock)
    size = bytearray(SIZE.size)
    receive_exactly(sock, memoryview(size))
    message = memoryview(bytearray(SIZE.unpack(size)[0]))
    with contextlib.suppress(EOFError):
        while True:
            receive_exactly(sock, message)
            sock.sendall(message)


def receive_exactly(sock: socket.socket, buffer: memoryview) -> None:
    """Fills the buffer.

    Raises:
        EOFError: The other end closed the connection first.
    """
    filled = 0
    while filled < len(buffer):
        count = sock.recv_into(buffer[filled:])
        if count == 0:
            raise EOFError("the other end closed the connection")
        filled += count


def tune(sock: socket.socket) -> None:
    """As `transport/connection.py` does it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve_zmq(report: Report) -> None:
    """ZeroMQ, with the headers and tensors of Manta's data plane."""
    import zmq  # of the extra `dev`: only to compare with

    sock = zmq.Context().socket(zmq.ROUTER)
    address = f"ipc://{tempfile.mkdtemp()}/s"
    sock.bind(address)
    report(address)
    while True:
        sender, encoded, body = sock.recv_multipart(copy=False)
        _, rows_TD = read_call(encoded.bytes, body.buffer)
        header = answer_header(rows_TD).SerializeToString()
        sock.send_multipart([sender, header, rows_to_body(rows_TD)], copy=False)


def serve_grpc(report: Report) -> None:
    """gRPC, unary and streaming."""
    import grpc

    def answer_each(requests: Iterator[bytes], context: object) -> Iterator[bytes]:
        del context
        yield from requests

    handlers = {
        GRPC_UNARY: grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        GRPC_STREAM: grpc.stream_stream_rpc_method_handler(answer_each),
    }

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return handlers.get(handler_call_details.method)

    server = grpc.server(futures.ThreadPoolExecutor(4), [Handler()], options=GRPC_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    report(port)
    server.wait_for_termination()
