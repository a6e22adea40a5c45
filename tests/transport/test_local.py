"""The in-process transport."""

import torch

from protos.dispatch_pb2 import Header
from tests.transport.driving import Answers, echo, echo_without_expert_3, random_rows
from transport.base import DegradedRows, Peer, Request
from transport.errors import CallError
from transport.local import LocalPeer


def test_the_answer_is_there_when_the_call_returns(seed: int) -> None:
    peer: Peer = LocalPeer(echo)
    answers: Answers = []
    rows_TD = random_rows(2, 3, seed)
    peer.call(Header(), rows_TD, answers.append)
    assert answers == [rows_TD]
    assert peer.ready
    assert peer.rows_in_flight == 0
    peer.close()


def test_a_service_may_fail_a_call() -> None:
    def fail(requests: list[Request]) -> None:
        for request in requests:
            request.responder.fail(CallError("internal", "no"))

    answers: Answers = []
    LocalPeer(fail).call(Header(), torch.zeros(1, 1), answers.append)
    assert isinstance(answers[0], CallError)


def test_an_answer_may_tell_of_missing_experts(seed: int) -> None:
    answers: Answers = []
    rows_TD = random_rows(2, 3, seed)
    LocalPeer(echo_without_expert_3).call(Header(), rows_TD, answers.append)
    assert isinstance(answers[0], DegradedRows)
    assert answers == [(rows_TD, (3,))]
