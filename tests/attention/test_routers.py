"""How a node's rows reach a router, and what it makes of each kind of answer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attention.routers import ROUTERS, RouterClient
from transport.address import Address
from transport.base import DegradedRows, Request
from transport.errors import CallError
from transport.local import LocalPeer
from transport.loop import Timer
from transport.replicas import Replicas

ROWS_TD = torch.arange(12, dtype=torch.float32).view(3, 4)


def no_timer(delay_s: float, callback: Callable[[], None]) -> Timer:
    raise AssertionError("nothing is to wait")


def client(
    serve: Callable[[Request], None],
    timeout_s: float = 5.0,
    pump: Callable[[float], None] = lambda timeout_s: None,
) -> RouterClient:
    routers = Replicas(lambda address: LocalPeer(lambda requests: serve(requests[0])), no_timer, 0.0)
    routers.update({ROUTERS: (Address("local", "router", "", 0),)})
    return RouterClient(routers, pump, timeout_s)


def test_rows_and_layer_arrive_and_the_answer_returns() -> None:
    def serve(request: Request) -> None:
        assert request.header.layer_rows.layer == 7
        assert (request.header.layer_rows.rows.num_rows, request.header.layer_rows.rows.width) == (3, 4)
        request.responder.reply(request.rows_TD * 2)

    answer = client(serve).exchange(7, ROWS_TD)
    assert isinstance(answer, Tensor)
    assert torch.equal(answer, ROWS_TD * 2)


def test_an_answer_with_missing_experts() -> None:
    answer = client(lambda request: request.responder.reply(request.rows_TD.double() * 2, (1, 3))).exchange(7, ROWS_TD)
    assert isinstance(answer, DegradedRows)
    assert answer.rows_TD.dtype == torch.float32
    assert torch.equal(answer.rows_TD, ROWS_TD * 2)
    assert answer.missing_experts == (1, 3)


def test_an_answer_takes_the_dtype_of_the_rows() -> None:
    answer = client(lambda request: request.responder.reply(request.rows_TD.double())).exchange(0, ROWS_TD)
    assert isinstance(answer, torch.Tensor)
    assert answer.dtype == torch.float32


@pytest.mark.parametrize("missing", [(), (2,)])
@pytest.mark.parametrize("answer_TD", [ROWS_TD[:2], ROWS_TD[:, :3], ROWS_TD.T])
def test_an_answer_of_another_shape(answer_TD: Tensor, missing: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match=r"shape .* to rows of shape \(3, 4\)") as failed:
        client(lambda request: request.responder.reply(answer_TD, missing)).exchange(0, ROWS_TD)
    assert failed.value.code == "internal"


def test_a_failure_is_raised() -> None:
    error = CallError("expert_unavailable", "expert 3 is away")
    with pytest.raises(CallError) as failed:
        client(lambda request: request.responder.fail(error)).exchange(0, ROWS_TD)
    assert failed.value is error


def test_no_answer_in_time() -> None:
    with pytest.raises(CallError, match=r"within 0\.05 s") as failed:
        client(lambda request: None, timeout_s=0.05).exchange(0, ROWS_TD)
    assert failed.value.code == "expert_unavailable"


def test_an_answer_that_lies_there_when_time_is_up() -> None:
    """The process was held up: what has arrived meanwhile counts."""
    late: list[Request] = []

    def pump(timeout_s: float) -> None:
        assert timeout_s == 0.0
        late[0].responder.reply(late[0].rows_TD)

    assert torch.equal(client(late.append, timeout_s=0.0, pump=pump).exchange(0, ROWS_TD), ROWS_TD)
