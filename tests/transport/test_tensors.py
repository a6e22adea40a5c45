"""Rows as bytes and back."""

import pytest
import torch

from protos.dispatch_pb2 import BFLOAT16, FLOAT32, Dtype, Header, Rows
from tests.transport.driving import random_rows
from transport.base import DegradedRows
from transport.errors import CallError
from transport.tensors import answer_header, degraded_header, read_answer, rows_to_body


def described(rows_TD: torch.Tensor) -> Rows:
    return answer_header(rows_TD).rows


def received(rows: Rows, body: memoryview) -> torch.Tensor:
    """What an answer with such a header is read as."""
    answer = read_answer(Header(rows=rows).SerializeToString(), body)
    if isinstance(answer, CallError):
        raise answer
    return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 512)])
def test_rows_come_back_equal(dtype: torch.dtype, shape: tuple[int, int], seed: int) -> None:
    rows_TD = random_rows(*shape, seed).to(dtype)
    body = memoryview(bytearray(rows_to_body(rows_TD)))
    back_TD = received(described(rows_TD), body)
    assert back_TD.dtype == dtype
    assert torch.equal(back_TD, rows_TD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contiguous_rows_are_not_copied(dtype: torch.dtype) -> None:
    rows_TD = torch.zeros(2, 8, dtype=dtype)
    body = rows_to_body(rows_TD)
    rows_TD[1, 7] = 1.0
    assert bytes(body) != bytes(len(body))


def test_received_rows_share_memory_with_the_body() -> None:
    body = memoryview(bytearray(4 * 6))
    rows_TD = received(Rows(dtype=FLOAT32, num_rows=2, width=3), body)
    rows_TD[0, 0] = 1.0
    assert bytes(body) != bytes(len(body))


def test_rows_that_are_not_contiguous(seed: int) -> None:
    rows_TD = random_rows(6, 4, seed)
    for cut_TD in (rows_TD[:, :3], rows_TD.t(), rows_TD[::2]):
        body = memoryview(bytearray(rows_to_body(cut_TD)))
        assert torch.equal(received(described(cut_TD), body), cut_TD)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
def test_no_rows_or_no_elements(shape: tuple[int, int]) -> None:
    rows_TD = torch.empty(shape)
    body = rows_to_body(rows_TD)
    assert len(body) == 0
    assert received(described(rows_TD), body).shape == shape


@pytest.mark.parametrize("num_bytes", [0, 1, 23, 25, 48])
def test_a_body_of_another_size_is_refused(num_bytes: int) -> None:
    with pytest.raises(CallError, match=rf"a body has {num_bytes} bytes; its header describes 24") as caught:
        received(Rows(dtype=FLOAT32, num_rows=2, width=3), memoryview(bytearray(num_bytes)))
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("dtype", [0, 77])
def test_an_unknown_dtype_is_refused(dtype: Dtype) -> None:
    with pytest.raises(CallError, match=rf"dtype {dtype}; allowed: 1 \(FLOAT32\), 2"):
        received(Rows(dtype=dtype, num_rows=2, width=3), memoryview(bytearray(24)))


def test_an_answer_that_does_not_fit_its_header_is_an_error() -> None:
    header = Header(rows=Rows(dtype=BFLOAT16, num_rows=2, width=3))
    answer = read_answer(header.SerializeToString(), memoryview(bytearray(11)))
    assert isinstance(answer, CallError)
    assert answer.code == "invalid_request"


def test_the_bytes_outlive_the_rows(seed: int) -> None:
    """A body waits in a full socket's outbox after its sender has forgotten the tensor."""
    bodies = [rows_to_body(random_rows(64, 512, seed + number)) for number in range(50)]
    for number, body in enumerate(bodies):
        rows_TD = random_rows(64, 512, seed + number)
        assert bytes(body) == rows_TD.numpy().tobytes()
        assert bytes(body[7:][100:]) == rows_TD.numpy().tobytes()[107:]


@pytest.mark.parametrize("missing", [(0,), (3, 250, 100_000), tuple(range(2000))])
def test_missing_experts_come_back_with_the_rows(missing: tuple[int, ...], seed: int) -> None:
    rows_TD = random_rows(3, 5, seed)
    body = memoryview(bytearray(rows_to_body(rows_TD)))
    for _ in range(2):  # the second time from the tables of what is known
        answer = read_answer(degraded_header(rows_TD, missing).SerializeToString(), body)
        assert isinstance(answer, DegradedRows)
        assert torch.equal(answer.rows_TD, rows_TD)
        assert answer.missing_experts == missing


def test_missing_experts_leave_the_shared_header_alone(seed: int) -> None:
    rows_TD = random_rows(3, 5, seed)
    shared = answer_header(rows_TD)
    degraded_header(rows_TD, (1, 2))
    assert answer_header(rows_TD) is shared
    assert not shared.rows.missing_experts
    assert isinstance(read_answer(shared.SerializeToString(), memoryview(bytearray(60))), torch.Tensor)


def test_missing_experts_with_a_body_that_does_not_fit() -> None:
    header = degraded_header(torch.zeros(2, 3), (1,))
    answer = read_answer(header.SerializeToString(), memoryview(bytearray(11)))
    assert isinstance(answer, CallError)
