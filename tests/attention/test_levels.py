"""What a step tells the routers, at each routing level."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attention.levels import step_experts, task_counts
from attention.routers import ROUTERS, RouterClient
from attention.scheduler import Chunk, StepPlan
from attention.sequence import Sequence
from model.routing import Routing
from protos.generation_pb2 import Sampling
from tests.attention.small_engine import CONFIG, CPU
from transport.address import Address
from transport.base import Request
from transport.local import LocalPeer
from transport.loop import Timer
from transport.replicas import Replicas


def sequence(lane: int, num_cached: int = 0, task: int = 0) -> Sequence:
    return Sequence(lane, [], 0, Sampling(), 0, 0.0, task=task, lane=lane, num_cached=num_cached)


def no_timer(delay_s: float, callback: Callable[[], None]) -> Timer:
    raise AssertionError("nothing is to wait")


class Spy:
    """A router that notes what it is asked and answers as many rows as it should."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        routers = Replicas(lambda address: LocalPeer(self.serve), no_timer, 0.0)
        routers.update({ROUTERS: (Address("local", "router", "", 0),)})
        self.client = RouterClient(routers, lambda timeout_s: None, 5.0)

    def serve(self, requests: list[Request]) -> None:
        for request in requests:
            self.requests.append(request)
            halves = request.header.layer_rows.has_gate_rows
            request.responder.reply(request.rows_TD[: len(request.rows_TD) // (2 if halves else 1)] * 2)

    def step(self, routing: Routing, *plans: StepPlan) -> list[Request]:
        """Takes a layer of each plan's step, with rows of ones."""
        experts = step_experts(self.client, replace(CONFIG, routing=routing), 4, CPU)
        for plan in plans:
            num_rows = len(plan.decode) + sum(chunk.count for chunk in plan.prefill)
            rows_TD = torch.arange(num_rows).float()[:, None].expand(-1, CONFIG.hidden_size).contiguous()
            answer = experts(plan)(1, rows_TD)
            assert isinstance(answer, Tensor)
            assert torch.equal(answer, rows_TD * 2)
        return self.requests


def test_token_level_sends_rows_alone() -> None:
    (request,) = Spy().step(Routing(), StepPlan([sequence(0, 3)], [Chunk(sequence(1), 4, last=True)]))
    asked = request.header.layer_rows
    assert (asked.layer, asked.rows.num_rows, asked.has_gate_rows, list(asked.task_ids)) == (1, 5, False, [])


@pytest.mark.parametrize(
    ("decode", "chunks", "expected"),
    [
        ([1], [], ((1, 1),)),
        ([1, 1], [(1, 5), (0, 3)], ((1, 7), (0, 3))),
        ([0, 1, 0], [(0, 2)], ((0, 1), (1, 1), (0, 3))),
        ([], [(2, 6)], ((2, 6),)),
    ],
)
def test_task_level_tells_runs_of_tasks(
    decode: list[int], chunks: list[tuple[int, int]], expected: tuple[tuple[int, int], ...]
) -> None:
    decoding = [sequence(0, 3, task) for task in decode]
    plan = StepPlan(decoding, [Chunk(sequence(1, task=task), count, last=False) for task, count in chunks])
    assert task_counts(plan) == expected
    (request,) = Spy().step(Routing("task", tasks=("a", "b", "c")), plan)
    asked = request.header.layer_rows
    assert tuple(zip(asked.task_ids, asked.num_rows_per_task, strict=True)) == expected
    assert not asked.has_gate_rows


def test_sentence_level_sends_means_and_keeps_sums_by_lane() -> None:
    """Rows hold their own number; N = 3. A new sequence in a lane starts from nothing."""
    first, second = sequence(2), sequence(0)
    steps = [
        StepPlan([], [Chunk(first, 2, last=False), Chunk(second, 4, last=True)]),
        StepPlan([sequence(0, 4)], [Chunk(sequence(2, 2), 2, last=True)]),
        StepPlan([sequence(2, 4), sequence(0, 5)]),
        StepPlan([sequence(2, 0)]),
        StepPlan([sequence(0, 6), sequence(2, 1)]),
    ]
    requests = Spy().step(Routing("sentence", 3), *steps)
    assert all(request.header.layer_rows.has_gate_rows for request in requests)
    rows, gate_rows = zip(*(request.rows_TD[:, 0].chunk(2) for request in requests), strict=True)
    assert [part.tolist() for part in rows] == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0, 1], [0], [0, 1]]
    decided = [(2 + 3 + 4) / 3, (0 + 1 + 1) / 3]
    assert gate_rows[0].tolist() == pytest.approx([0, 0.5, 2, 2.5, 3, 3])
    assert gate_rows[1].tolist() == pytest.approx([decided[0], decided[1], decided[1]])
    assert gate_rows[2].tolist() == pytest.approx([decided[1], decided[0]])
    assert gate_rows[3].tolist() == [0]
    assert gate_rows[4].tolist() == pytest.approx([decided[0], 0.5])
