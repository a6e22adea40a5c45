"""Random shards for expert tests, and the SwiGLU that they are compared with.

N rows, D model dim, F expert hidden dim.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.ffn import ExpertFFN
from experts.shard import ExpertShard
from protos.dispatch_pb2 import ExpertRows, Header
from transport.base import Request
from transport.errors import CallError
from transport.tensors import expert_header

WIDTH, FFN_SIZE = 32, 64


def random_ffn(generator: torch.Generator, width: int = WIDTH, ffn_size: int = FFN_SIZE) -> tuple[Tensor, Tensor]:
    """Returns gate_up_2FD and down_DF, in float32."""
    gate_up_2FD = torch.randn(2 * ffn_size, width, generator=generator) / width**0.5 * 2
    return gate_up_2FD, torch.randn(width, ffn_size, generator=generator) / ffn_size**0.5


def naive(rows_ND: Tensor, gate_up_2FD: Tensor, down_DF: Tensor) -> Tensor:
    """SwiGLU as it is written down."""
    gate_FD, up_FD = gate_up_2FD.chunk(2)
    return (F.silu(rows_ND @ gate_FD.T) * (rows_ND @ up_FD.T)) @ down_DF.T


def close(output_ND: Tensor, expected_ND: Tensor, dtype: torch.dtype) -> bool:
    """Whether an output computed in `dtype`, its weights rounded to it, is the one expected."""
    scale = max(1.0, float(expected_ND.abs().max()))
    tolerance = 1e-5 if dtype == torch.float32 else 8 * 2**-8
    return float((output_ND.float() - expected_ND).abs().max()) < tolerance * scale


@dataclass
class Shard:
    """A shard of random experts, and their weights in float32."""

    weights: dict[tuple[int, int], tuple[Tensor, Tensor]]
    dtype: torch.dtype = torch.float32
    shard: ExpertShard = field(init=False)

    def __post_init__(self) -> None:
        ffns = {key: ExpertFFN(up.to(self.dtype), down.to(self.dtype)) for key, (up, down) in self.weights.items()}
        self.shard = ExpertShard(ffns, WIDTH, self.dtype)

    def naive(self, header: ExpertRows, rows_ND: Tensor) -> Tensor:
        """The answer to one call."""
        parts = rows_ND.split(list(header.num_rows_per_expert))
        keys = [(header.layer, expert) for expert in header.expert_ids]
        return torch.cat([naive(part, *self.weights[key]) for key, part in zip(keys, parts, strict=True)])


def random_shard(
    seed: int, num_layers: int = 2, expert_ids: tuple[int, ...] = (0, 1, 2), dtype: torch.dtype = torch.float32
) -> Shard:
    generator = torch.Generator().manual_seed(seed)
    keys = [(layer, expert) for layer in range(num_layers) for expert in expert_ids]
    return Shard({key: random_ffn(generator) for key in keys}, dtype)


class Answers:
    """Collects the answer to one call."""

    def __init__(self) -> None:
        self.received: list[Tensor | CallError] = []

    def reply(self, rows_TD: Tensor) -> None:
        self.received.append(rows_TD)

    def fail(self, error: CallError) -> None:
        self.received.append(error)

    @property
    def rows(self) -> Tensor:
        (answer,) = self.received
        assert isinstance(answer, Tensor), answer
        return answer

    @property
    def error(self) -> CallError:
        (answer,) = self.received
        assert isinstance(answer, CallError)
        return answer


def call(layer: int, counts: dict[int, int], rows_ND: Tensor) -> tuple[Request, Answers]:
    """A call for `counts` rows of each expert; its header is its own, which a test may damage."""
    answers = Answers()
    header = Header()
    header.CopyFrom(expert_header(layer, tuple(counts.items()), rows_ND))
    return Request(header, rows_ND, answers), answers
