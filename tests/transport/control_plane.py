"""Stands in for a Ray cluster's control plane: a gRPC server that asks for a token, or does not."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from transport.strangers import CLIENT_CALL, CONTROL_PLANE_CALL


class Calls(grpc.GenericRpcHandler):
    """Answers the calls that Ray answers, in Ray's way."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method not in (CONTROL_PLANE_CALL, CLIENT_CALL):
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        given = dict(context.invocation_metadata()).get("authorization")
        if self._token is not None and given != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing or incorrect")
        return b""


@contextmanager
def control_plane(token: str | None) -> Iterator[str]:
    """Gives its HOST:PORT.

    Args:
        token: What it asks for; None: nothing.
    """
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=(Calls(token),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
