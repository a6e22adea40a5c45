"""Connections are cut in the middle of a frame, at either end: what was under way is sent again; nobody restarts."""

from collections.abc import Callable

import pytest

from tests.faults.cutting import cut_next_answer, cut_next_call, lengths_of_cut_frames
from tests.faults.load import load
from tests.faults.parts import RECOVERY_S, actors, call_in, processes
from tests.integration.ray_service import RayService, wait_until
from tests.oracle import Oracle

pytestmark = pytest.mark.cluster

# Where the half frame comes from, and what that side of the connection is called.
CALLS = [("gateways", "gateway"), ("attention_nodes", "node"), ("routers", "router")]
ANSWERS = [("attention_nodes", "gateway"), ("routers", "node"), ("experts", "router")]


@pytest.mark.parametrize(("part", "role"), CALLS)
def test_half_a_call(service: RayService, oracle: Oracle, seed: int, part: str, role: str) -> None:
    check(service, oracle, seed, part, role, cut_next_call)


@pytest.mark.parametrize(("part", "role"), ANSWERS)
def test_half_an_answer(service: RayService, oracle: Oracle, seed: int, part: str, role: str) -> None:
    check(service, oracle, seed, part, role, cut_next_answer)


def check(
    service: RayService, oracle: Oracle, seed: int, part: str, role: str, cut: Callable[[object, str], int]
) -> None:
    before = processes(service)
    with load(service, oracle, seed) as streams:
        for pid, actor in actors(service, part).items():
            num_before = len(call_in(actor, lengths_of_cut_frames))
            num_connections = call_in(actor, cut, role)
            assert num_connections > 0, f"{pid} has no such connection"
            wait_until(
                lambda actor=actor, wanted=num_before + num_connections: (
                    len(call_in(actor, lengths_of_cut_frames)) >= wanted
                ),
                RECOVERY_S,
                f"{pid} sends on each connection",
                service.show,
            )
        streams.wait_flowing()
    assert processes(service) == before
