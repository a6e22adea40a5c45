"""The callee's side of the Ray transport, without Ray. With it: tests/integration/test_ray_transport.py."""

import numpy as np
import pytest
import torch

from protos.dispatch_pb2 import Header
from tests.transport.driving import echo, echo_without_expert_3, expert_rows, random_rows
from transport.base import Answer, DegradedRows, Request
from transport.errors import CallError
from transport.ray import serve_ray_call
from transport.tensors import read_answer, rows_to_body


def served(service: object, header: Header, rows_TD: torch.Tensor) -> Answer:
    body = np.frombuffer(rows_to_body(rows_TD), np.uint8)
    body.flags.writeable = False  # as Ray hands it out
    encoded, answer = serve_ray_call(service, header.SerializeToString(), body)  # pyright: ignore[reportArgumentType]
    return read_answer(encoded, np.array(answer).data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 3])
def test_rows_come_back(dtype: torch.dtype, num_rows: int, seed: int) -> None:
    rows_TD = random_rows(num_rows, 4, seed).to(dtype)
    answer = served(echo, expert_rows(rows_TD), rows_TD)
    assert isinstance(answer, torch.Tensor)
    assert torch.equal(answer, rows_TD)


def test_a_service_may_fail_a_call(seed: int) -> None:
    def fail(requests: list[Request]) -> None:
        for request in requests:
            request.responder.fail(CallError("internal", "out of order"))

    answer = served(fail, expert_rows(random_rows(1, 2, seed)), random_rows(1, 2, seed))
    assert isinstance(answer, CallError)
    assert (answer.code, answer.message) == ("internal", "out of order")


def test_a_malformed_call_is_answered_with_its_error(seed: int) -> None:
    answer = served(echo, expert_rows(random_rows(2, 2, seed)), random_rows(1, 2, seed))
    assert isinstance(answer, CallError)
    assert answer.code == "invalid_request"


def test_an_answer_may_tell_of_missing_experts(seed: int) -> None:
    rows_TD = random_rows(2, 2, seed)
    answer = served(echo_without_expert_3, expert_rows(rows_TD), rows_TD)
    assert isinstance(answer, DegradedRows)
    assert torch.equal(answer.rows_TD, rows_TD)
    assert answer.missing_experts == (3,)
