"""The environment of a Ray that Manta starts itself."""

from concurrent import futures

import grpc
import pytest

from cluster.ray_session import RAY_ENVIRONMENT

PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy")
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("proxy", PROXY_VARIABLES)
def test_no_proxy_of_the_environment_is_between_the_processes_of_our_own_ray(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Serve's proxy calls gateways over gRPC, with a channel that obeys these variables."""
    for name in (*PROXY_VARIABLES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(proxy, NOWHERE)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("manta", {"echo": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert channel.unary_unary("/manta/echo")(b"rows", timeout=10) == b"rows"
    finally:
        server.stop(None)
