"""A proxy between two real ends of the data plane: what goes through is whole, later, slower, cut, or nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks.faults.link_proxy import WHOLE, Fault, LinkProxy, Proxies
from transport.base import Answer, Request
from transport.credentials import Credentials
from transport.errors import PeerLost
from transport.loop import Loop
from transport.socket import RequestServer, SocketPeer
from transport.tensors import answer_header, layer_header, rows_to_body

from transport.frames import encode_head  # isort: skip

CREDENTIALS = Credentials(b"a key for the tests of links")
ROWS = torch.arange(12.0).reshape(3, 4)
TIMEOUT_S = 60.0


def echo(requests: list[Request]) -> None:
    for request in requests:
        request.responder.reply(request.rows_TD * 2)


class Caller:
    """Calls through a proxy, turning its loop itself."""

    def __init__(self, proxy: LinkProxy) -> None:
        self.loop = Loop()
        self.answers: list[Answer] = []
        self.peer = SocketPeer(self.loop, proxy.address, CREDENTIALS, "node", lambda: None)

    def connect(self) -> None:
        self.turn_until(lambda: self.peer.ready)

    def call(self) -> None:
        self.peer.call(layer_header(0, ROWS), ROWS, self.answers.append)

    def turn_until(self, holds, timeout_s: float = TIMEOUT_S) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < deadline_s:
            self.loop.run_once(0.01)
        return holds()

    def answer(self) -> Answer:
        assert self.turn_until(lambda: bool(self.answers)), "no answer"
        return self.answers.pop()


@pytest.fixture(params=[False, True], ids=["unix", "sealed-tcp"])
def over_tcp(request: pytest.FixtureRequest) -> bool:
    return request.param


@contextmanager
def linked(over_tcp: bool) -> Iterator[tuple[LinkProxy, Caller]]:
    loop = Loop()
    server = RequestServer(loop, "router", CREDENTIALS, "127.0.0.1" if over_tcp else None, echo)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with Proxies() as proxies:
        proxy = proxies.before(server.address, over_tcp)
        caller = Caller(proxy)
        caller.connect()
        yield proxy, caller
        caller.peer.close()
        caller.loop.close()
    loop.stop()
    thread.join(TIMEOUT_S)
    server.close()


def test_without_a_fault_all_goes_through(over_tcp: bool) -> None:
    with linked(over_tcp) as (proxy, caller):
        for _ in range(20):
            caller.call()
            assert torch.equal(caller.answer(), ROWS * 2)
        assert proxy.num_cut == 0


@pytest.mark.parametrize("fault", [Fault(delay_s=0.1), Fault(bytes_per_s=2000.0)])
def test_late_and_slow_links_answer_late(over_tcp: bool, fault: Fault) -> None:
    with linked(over_tcp) as (proxy, caller):
        proxy.set(fault)
        began_s = time.monotonic()
        caller.call()
        caller.call()
        assert caller.turn_until(lambda: len(caller.answers) == 2)
        assert time.monotonic() - began_s > 0.04
        assert all(torch.equal(answer, ROWS * 2) for answer in caller.answers)


def test_a_silent_link_answers_once_it_is_not(over_tcp: bool) -> None:
    with linked(over_tcp) as (proxy, caller):
        proxy.set(Fault(silent=True))
        caller.call()
        assert not caller.turn_until(lambda: bool(caller.answers), 0.3)
        proxy.set(WHOLE)
        assert torch.equal(caller.answer(), ROWS * 2)


def test_a_reset_is_noticed_at_once_and_the_next_connection_works(over_tcp: bool) -> None:
    with linked(over_tcp) as (proxy, caller):
        proxy.reset()
        assert caller.turn_until(lambda: not caller.peer.ready)
        assert proxy.num_cut == 1
        caller.connect()
        caller.call()
        assert torch.equal(caller.answer(), ROWS * 2)


def frame_bytes() -> int:
    """The longer of the call's frame and its answer's."""
    body = rows_to_body(ROWS)
    return max(len(encode_head(header, len(body), 1)) for header in (layer_header(0, ROWS), answer_header(ROWS))) + len(
        body
    )


def test_cut_at_every_byte_of_a_frame_a_call_is_answered_whole_or_lost(over_tcp: bool) -> None:
    lost = 0
    with linked(over_tcp) as (proxy, caller):
        for cut_after in range(1, frame_bytes() + 1):
            proxy.set(Fault(cut_after=cut_after))
            caller.call()
            answer = caller.answer()
            proxy.set(WHOLE)
            lost += isinstance(answer, PeerLost)
            assert isinstance(answer, PeerLost) or torch.equal(answer, ROWS * 2)
            caller.connect()
        caller.call()
        assert torch.equal(caller.answer(), ROWS * 2)
    assert lost >= frame_bytes() - 4
