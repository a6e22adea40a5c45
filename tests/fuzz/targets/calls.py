"""An expert actor answers each call once, with rows of its shape or an error, and others' calls beside it are whole."""

import torch

from tests.experts.shards import Answers, Shard, random_shard
from tests.fuzz.material import Material
from transport.base import Request
from transport.errors import CallError, FrameError
from transport.tensors import expert_header, read_answer, read_call, rows_to_body

from experts.service import ExpertService  # isort: skip

SHARD: Shard = random_shard(7)
HONEST_1D = torch.linspace(-1, 1, 32).reshape(1, 32)
HEADER = expert_header(1, ((2, 1),), HONEST_1D)


def one(data: bytes) -> None:
    material = Material(data)
    encoded, num_body = material.piece(), material.number(1024)
    body = memoryview(bytearray(num_body))
    try:
        read_answer(encoded, body)
    except FrameError:
        return
    try:
        header, rows_TD = read_call(encoded, body)
    except CallError:
        return
    service = ExpertService(SHARD.shard, torch.device("cpu"))
    foreign, honest = Answers(), Answers()
    service.serve([Request(header, rows_TD, foreign), Request(HEADER, HONEST_1D, honest)])
    (answer,) = foreign.received
    assert isinstance(answer, CallError) or answer.shape == rows_TD.shape
    expected_1D = SHARD.naive(HEADER.expert_rows, HONEST_1D)
    assert torch.allclose(honest.rows, expected_1D, atol=1e-4), "another caller's answer is not what it was"
    assert len(rows_to_body(honest.rows)) == HONEST_1D.nbytes
