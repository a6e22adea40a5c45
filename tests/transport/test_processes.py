"""The socket transport between real processes: large bodies, a peer that dies, one that never answers."""

import time
from dataclasses import replace

import pytest
import torch

from tests.transport.driving import CREDENTIALS, Answers, connected, expert_rows, random_rows, turn_until
from tests.transport.echo_process import echo_process
from transport.errors import PeerLost
from transport.loop import Loop
from transport.replicas import Replicas
from transport.socket import SocketPeer


@pytest.mark.parametrize("over_tcp", [False, True])
def test_large_bodies_both_ways_at_once(loop: Loop, over_tcp: bool, seed: int) -> None:
    with echo_process(tcp_host="127.0.0.1") as child:
        peer = connected(loop, replace(child.address, host_id="elsewhere") if over_tcp else child.address)
        sent = [random_rows(1500, 2048, seed + number) for number in range(4)]
        answers: Answers = []
        for rows_TD in sent:
            peer.call(expert_rows(rows_TD), rows_TD, answers.append)
        turn_until(lambda: len(answers) == len(sent), loop)
        assert all(torch.equal(answer, rows) for answer, rows in zip(answers, sent, strict=True))  # pyright: ignore[reportArgumentType]
        peer.close()


@pytest.mark.parametrize("over_tcp", [False, True])
def test_the_death_of_a_process_is_noticed_at_once(loop: Loop, over_tcp: bool, seed: int) -> None:
    """Measured: about 1 ms on an idle machine (`python -m benchmarks.hop`); the limit here is for busy ones."""
    with echo_process(tcp_host="127.0.0.1", holds=True) as child:
        peer = connected(loop, replace(child.address, host_id="elsewhere") if over_tcp else child.address)
        answers: Answers = []
        for _ in range(3):
            peer.call(expert_rows(random_rows(4, 8, seed)), random_rows(4, 8, seed), answers.append)
        loop.run_once(0.1)
        assert answers == []
        child.process.kill()
        killed_s = time.monotonic()
        turn_until(lambda: len(answers) == 3, loop)
        assert time.monotonic() - killed_s < 2.0
        assert [type(answer) for answer in answers] == [PeerLost] * 3
        assert not peer.ready
        assert peer.rows_in_flight == 0
        peer.close()


def test_calls_of_a_killed_replica_are_done_by_another(loop: Loop, seed: int) -> None:
    with echo_process(holds=True) as doomed, echo_process() as survivor:
        replicas = Replicas(
            lambda address: SocketPeer(loop, address, CREDENTIALS, "node", lambda: replicas.retry_waiting()),
            loop.call_later,
            recovery_timeout_s=30.0,
        )
        replicas.update({"experts": (doomed.address,)})
        turn_until(lambda: replicas.complete, loop)
        answers: Answers = []
        sent = [random_rows(2, 8, seed + number) for number in range(5)]
        for rows_TD in sent:
            replicas.call("experts", expert_rows(rows_TD), rows_TD, answers.append)
        replicas.update({"experts": (doomed.address, survivor.address)})
        loop.run_once(0.1)
        assert answers == []
        doomed.process.kill()
        turn_until(lambda: len(answers) == len(sent), loop)
        assert all(isinstance(answer, torch.Tensor) for answer in answers)
        total_TD, expected_TD = sum(answers), sum(sent)  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert torch.allclose(total_TD, expected_TD)  # pyright: ignore[reportArgumentType]
        replicas.close()
