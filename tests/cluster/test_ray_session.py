"""A Ray that Manta starts itself: its environment, and signals while it starts."""

import os
import signal
import sys
from concurrent import futures

import grpc
import pytest
import ray

from cluster import ray_session
from cluster.ray_session import RAY_ENVIRONMENT, start_local_ray
from manta.outcome import signals_are_ctrl_c

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


def test_a_sigterm_that_meets_ray_s_own_handler_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's exits with the signal's number, in whatever moment of its start the signal comes."""
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def init(**options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was lost")

    monkeypatch.setattr(ray_session, "demand_token", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with signals_are_ctrl_c():
        kept = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            start_local_ray()
        assert signal.getsignal(signal.SIGTERM) is kept
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as ending:  # there was no other handler
        start_local_ray()
    assert ending.value.code == signal.SIGTERM
