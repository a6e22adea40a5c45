"""The expert's server over real sockets, in the thread in which an actor runs it.

N rows, D model dim.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from experts.server import ExpertServer
from protos.dispatch_pb2 import BFLOAT16, FLOAT32
from tests.experts.shards import WIDTH, Shard, call, close, random_shard
from tests.transport.driving import CREDENTIALS, connected, turn_until
from transport.base import Answer
from transport.errors import CallError
from transport.loop import Loop

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
