"""A call over a link that fails: cut at every byte of it, damaged at every byte, delayed, slowed, half-open.

Whatever happens, the call is answered once, with what it would have been answered with.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import transport.link
import transport.replicas
import transport.server
from tests.transport.driving import CREDENTIALS, Answers, echo, expert_rows, random_rows, turn_until
from tests.transport.links import Direction, LinkProxy
from transport.base import Request
from transport.link import ANSWER_TIMEOUT_S
from transport.loop import Loop
from transport.replicas import Replicas
from transport.socket import RequestServer, SocketPeer

DIRECTIONS: tuple[Direction, ...] = ("to server", "to client")
GROUP = "experts"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.link, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(transport.link, "LAST_RETRY_S", 0.0)
    monkeypatch.setattr(transport.replicas, "PAUSE_S", 0.0)


class Linked:
    """A caller, proxies and callees on one loop."""

    def __init__(
        self,
        loop: Loop,
        over_tcp: bool,
        num_replicas: int = 1,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        service: Callable[[list[Request]], None] = echo,
    ) -> None:
        self.loop = loop
        tcp_host = "127.0.0.1" if over_tcp else None
        self.servers = [RequestServer(loop, "expert", CREDENTIALS, tcp_host, service) for _ in range(num_replicas)]
        self.proxies = [LinkProxy(loop, server.address, over_tcp) for server in self.servers]
        self.replicas = Replicas(
            lambda address: SocketPeer(
                loop,
                address,
                CREDENTIALS,
                "router",
                lambda: self.replicas.retry_waiting(),
                answer_timeout_s,
                calls_expire=True,
            ),
            loop.call_later,
            recovery_timeout_s=30.0,
        )
        self.proxy = self.proxies[0]

    def connect(self) -> None:
        self.replicas.update({GROUP: tuple(proxy.address for proxy in self.proxies)})

    def exchange(self, rows_TD: torch.Tensor) -> None:
        """Asserts that a call is answered as it would be without faults."""
        answers: Answers = []
        self.replicas.call(GROUP, expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: bool(answers), self.loop)
        assert len(answers) == 1
        assert isinstance(answers[0], torch.Tensor), answers[0]
        assert torch.equal(answers[0], rows_TD)

    def close(self) -> None:
        self.replicas.close()
        for proxy, server in zip(self.proxies, self.servers, strict=True):
            proxy.close()
            server.close()


@contextmanager
def linked(loop: Loop, over_tcp: bool, **more: object) -> Iterator[Linked]:
    made = Linked(loop, over_tcp, **more)  # pyright: ignore[reportArgumentType]
    try:
        yield made
    finally:
        made.close()


def undisturbed_bytes(loop: Loop, over_tcp: bool, rows_TD: torch.Tensor | None) -> dict[Direction, int]:
    """How many bytes one connection takes, and a call of these rows, if there are any, in each direction."""
    with linked(loop, over_tcp) as link:
        link.connect()
        if rows_TD is None:
            turn_until(lambda: link.replicas.complete and link.servers[0].num_callers == 1, loop)
        else:
            link.exchange(rows_TD)
        return dict(link.proxy.passed)


@pytest.mark.parametrize("over_tcp", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_link_cut_at_every_byte(loop: Loop, over_tcp: bool, direction: Direction, seed: int) -> None:
    rows_TD = random_rows(2, 4, seed)
    num_bytes = undisturbed_bytes(loop, over_tcp, rows_TD)[direction]
    assert num_bytes > 100
    for cut in range(1, num_bytes + 1):
        with linked(loop, over_tcp) as link:
            link.proxy.faults.cuts.append((direction, cut))
            link.connect()
            link.exchange(rows_TD)
            assert link.proxy.num_connections == 2 or cut == num_bytes, f"cut after {cut} bytes {direction}"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_sealed_link_damaged_at_every_byte(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, direction: Direction, seed: int
) -> None:
    """Nothing of what was changed is believed: not a length, not a row."""
    monkeypatch.setattr(transport.link, "HANDSHAKE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(transport.server, "PROOF_TIMEOUT_S", 0.5)
    rows_TD = random_rows(2, 4, seed)
    of_handshake = undisturbed_bytes(loop, True, None)[direction]
    num_bytes = undisturbed_bytes(loop, True, rows_TD)[direction]
    assert of_handshake + 80 < num_bytes
    for at in range(num_bytes):
        with linked(loop, True, answer_timeout_s=0.5) as link:
            link.proxy.faults.flips.append((direction, at))
            link.connect()
            link.exchange(rows_TD)
            if at >= of_handshake:  # of a handshake's frames, the call ids say nothing
                assert link.proxy.num_connections >= 2, f"bit of byte {at} {direction}"


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_link_that_is_cut_again_and_again(loop: Loop, over_tcp: bool, seed: int) -> None:
    """Each connection lasts long enough for one call, not for two; there are more than rows may cost replicas."""
    rows_TD = random_rows(2, 4, seed)
    passed = undisturbed_bytes(loop, over_tcp, rows_TD)
    numbers = random.Random(seed)
    with linked(loop, over_tcp) as link:
        for direction in DIRECTIONS:
            for _ in range(5):
                link.proxy.faults.always_cut.append((direction, passed[direction] + numbers.randrange(60)))
        link.connect()
        for _ in range(40):
            link.exchange(rows_TD)
        assert link.proxy.num_connections > 20


@pytest.mark.parametrize("over_tcp", [False, True])
def test_large_rows_over_a_link_cut_anywhere(loop: Loop, over_tcp: bool, seed: int) -> None:
    rows_TD = random_rows(256, 512, seed)
    passed = undisturbed_bytes(loop, over_tcp, rows_TD)
    numbers = random.Random(seed)
    for direction in DIRECTIONS:
        for _ in range(12):
            with linked(loop, over_tcp) as link:
                link.proxy.faults.cuts.append((direction, numbers.randrange(1, passed[direction])))
                link.connect()
                link.exchange(rows_TD)
                assert link.proxy.num_connections == 2


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_link_that_delays_and_one_that_is_slow(loop: Loop, over_tcp: bool, seed: int) -> None:
    for faults in ({"delay_s": 0.05}, {"bytes_per_s": 4e6}):
        with linked(loop, over_tcp) as link:
            for name, value in faults.items():
                setattr(link.proxy.faults, name, value)
            link.connect()
            for number in range(3):
                link.exchange(random_rows(1 + 100 * number, 512, seed + number))
            assert link.proxy.num_connections == 1, "late is not lost"


@pytest.mark.parametrize("over_tcp", [False, True])
@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("direction", [None, *DIRECTIONS])
def test_a_half_open_link(
    loop: Loop, over_tcp: bool, num_replicas: int, direction: Direction | None, seed: int
) -> None:
    """The proxy takes everything and passes nothing on; neither end is told."""
    with linked(loop, over_tcp, num_replicas=num_replicas, answer_timeout_s=0.3) as link:
        link.connect()
        turn_until(lambda: link.replicas.complete, loop)
        rows_TD = random_rows(2, 4, seed)
        for _ in range(2 * num_replicas):  # the least loaded of equals is any
            link.exchange(rows_TD)
        link.proxy.faults.silent, link.proxy.faults.silent_direction = direction is None, direction
        answers: list[Answers] = [[] for _ in range(2 * num_replicas)]
        for each in answers:
            link.replicas.call(GROUP, expert_rows(rows_TD), rows_TD, each.append)
        until_s = time.monotonic() + 0.6
        while time.monotonic() < until_s:
            loop.run_once(0.05)
        link.proxy.faults.silent, link.proxy.faults.silent_direction = False, None
        link.proxy.reset()  # what was swallowed does not come back; a new connection passes
        turn_until(lambda: all(answers), loop)
        for each in answers:
            assert len(each) == 1
            assert isinstance(each[0], torch.Tensor), each[0]
            assert torch.equal(each[0], rows_TD)


def test_with_another_replica_nobody_waits_for_a_half_open_link(loop: Loop, seed: int) -> None:
    with linked(loop, False, num_replicas=2, answer_timeout_s=0.3) as link:
        link.connect()
        turn_until(lambda: link.replicas.complete, loop)
        link.proxy.faults.silent = True
        for number in range(20):
            link.exchange(random_rows(2, 4, seed + number))
