"""Plain Ray actor calls as a transport: the baseline that `benchmarks.hop` compares the sockets with."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.integration.ray_service import wait_until
from tests.transport.driving import expert_rows, random_rows
from transport.errors import CallError, PeerLost

pytestmark = pytest.mark.cluster


@pytest.fixture
def actor(ray_port: int) -> Iterator[Any]:
    """An actor that echoes."""
    del ray_port  # only what it starts is needed
    import ray

    from benchmarks.hop.ray import EchoActor

    made = EchoActor.options(num_cpus=0).remote()  # pyright: ignore[reportFunctionMemberAccess]
    yield made
    ray.kill(made)


def test_calls_are_answered_and_a_malformed_one_fails_alone(actor: Any, seed: int) -> None:
    from transport.ray import RayPeer

    peer, answers = RayPeer(actor, timeout_s=60.0), list[torch.Tensor | CallError]()
    peer.poll()  # nothing is under way: returns at once
    sent = [random_rows(num_rows, 8, seed + num_rows).bfloat16() for num_rows in (3, 1, 4)]
    for rows_TD in sent:
        peer.call(expert_rows(rows_TD), rows_TD, answers.append)
    peer.call(expert_rows(sent[0]), sent[1], answers.append)
    assert peer.rows_in_flight == 9
    while peer.rows_in_flight:
        peer.poll()
    done = {answer.shape[0]: answer for answer in answers if isinstance(answer, torch.Tensor)}
    assert all(torch.equal(done[rows_TD.shape[0]], rows_TD) for rows_TD in sent)
    (error,) = (answer for answer in answers if isinstance(answer, CallError))
    assert error.code == "invalid_request"
    peer.close()


def is_dead(actor: Any) -> bool:
    import ray
    from ray.exceptions import RayActorError

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=60)
    except RayActorError:
        return True
    return False


def test_a_killed_actor_is_a_lost_peer(actor: Any, seed: int) -> None:
    import ray

    from transport.ray import RayPeer

    peer, answers = RayPeer(actor, timeout_s=60.0), list[torch.Tensor | CallError]()
    rows_TD = random_rows(2, 8, seed)
    peer.call(expert_rows(rows_TD), rows_TD, answers.append)
    peer.poll()
    ray.kill(actor)
    wait_until(lambda: is_dead(actor), 60, "the actor dies")  # it may answer some calls after it was told to
    peer.call(expert_rows(rows_TD), rows_TD, answers.append)
    peer.poll()
    assert isinstance(answers[0], torch.Tensor)
    assert isinstance(answers[1], PeerLost)
    assert peer.rows_in_flight == 0
