"""The expert's server over real sockets, in the thread in which an actor runs it.

N rows, D model dim.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from experts.ffn import ExpertFFN
from experts.server import ExpertServer
from protos.dispatch_pb2 import BFLOAT16, FLOAT32
from tests.experts.shards import FFN_SIZE, WIDTH, Shard, call, close, random_shard
from tests.transport.driving import CREDENTIALS, connected, turn_until
from transport.base import Answer
from transport.errors import CallError
from transport.loop import Loop
from transport.socket import SocketPeer

CPU = torch.device("cpu")


@contextmanager
def running(shard: Shard, core: int | None = None) -> Iterator[ExpertServer]:
    server = ExpertServer(shard.shard, CPU, CREDENTIALS, None, core)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server._thread.join(20.0)  # pyright: ignore[reportPrivateUsage]
        assert not server.alive
        assert not Path(server.address.unix_path).exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pinned", [False, True])
def test_routers_get_their_answers(dtype: torch.dtype, pinned: bool, seed: int) -> None:
    shard, loop = random_shard(seed, dtype=dtype), Loop()
    generator = torch.Generator().manual_seed(seed)
    core = min(os.sched_getaffinity(0)) if pinned else None
    with running(shard, core) as server:
        routers = [connected(loop, server.address) for _ in range(2)]
        made = [call(number % 2, {2: 1, 0: 3}, torch.randn(4, WIDTH, generator=generator)) for number in range(6)]
        answers: dict[int, Answer] = {}
        for number, (request, _) in enumerate(made):
            rows_ND = request.rows_TD.to(dtype)
            request.header.expert_rows.rows.dtype = FLOAT32 if dtype == torch.float32 else BFLOAT16
            routers[number % 2].call(request.header, rows_ND, partial(answers.__setitem__, number))
        turn_until(lambda: len(answers) == 6, loop)
        for number, (request, _) in enumerate(made):
            answer = answers[number]
            assert isinstance(answer, torch.Tensor), answer
            assert answer.dtype == dtype
            expected_ND = shard.naive(request.header.expert_rows, request.rows_TD)
            assert close(answer, expected_ND, dtype)
        figures = server.snapshot()
        assert figures["rows_total"] == 24
        assert 0 < float(str(figures["busy_s"])) < float(str(figures["uptime_s"]))
        assert 0 <= float(str(figures["utilization"])) <= 1
        for router in routers:
            router.close()
    loop.close()


@pytest.mark.parametrize("num_calls", [1, 2])
def test_a_slow_actor_that_gets_on_is_not_given_up(num_calls: int, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Each product takes a fifth of `limits.answer_timeout_s`; a call takes eight."""
    timeout_s, num_products = 0.5, 8
    monkeypatch.setattr("experts.ffn.MAX_OPERATIONS", 6.0 * WIDTH * FFN_SIZE * 2)
    monkeypatch.setattr("transport.socket.PROGRESS_S", timeout_s / 10)
    product = ExpertFFN.product

    def slowly(self: ExpertFFN, rows_ND: torch.Tensor) -> torch.Tensor:
        assert len(rows_ND) <= self.max_rows
        time.sleep(timeout_s / 5)  # by the clock, as the limit is: on a crowded core, work would take longer
        return product(self, rows_ND)

    monkeypatch.setattr(ExpertFFN, "product", slowly)
    shard, loop = random_shard(seed), Loop()
    with running(shard) as server:
        routers = [
            SocketPeer(loop, server.address, CREDENTIALS, "router", answer_timeout_s=timeout_s, calls_expire=True)
            for _ in range(num_calls)
        ]
        turn_until(lambda: all(router.ready for router in routers), loop)
        answers = list[Answer]()
        request, _ = call(0, {1: 2 * num_products}, torch.randn(2 * num_products, WIDTH))
        for router in routers:
            router.call(request.header, request.rows_TD, answers.append)
        turn_until(lambda: len(answers) == num_calls, loop, timeout_s=60.0)
        expected_ND = shard.naive(request.header.expert_rows, request.rows_TD)
        assert all(isinstance(one, torch.Tensor) and torch.allclose(one, expected_ND, atol=1e-5) for one in answers)
        for router in routers:
            router.close()
    loop.close()


def test_a_malformed_call_over_sockets_fails_alone(seed: int) -> None:
    shard, loop = random_shard(seed), Loop()
    with running(shard) as server:
        router = connected(loop, server.address)
        answers: list[torch.Tensor | CallError] = []
        for layer in (9, 1):
            request, _ = call(layer, {1: 2}, torch.ones(2, WIDTH))
            router.call(request.header, request.rows_TD, answers.append)
        turn_until(lambda: len(answers) == 2, loop)
        assert isinstance(answers[0], CallError)
        assert answers[0].code == "invalid_request"
        assert isinstance(answers[1], torch.Tensor)
        router.close()
    loop.close()
