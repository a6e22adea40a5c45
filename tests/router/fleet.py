"""Experts for router tests: random weights, served in this process, and the naive loop that they are compared with.

T rows, D model dim, F expert hidden dim, E experts, K chosen experts per row.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protos.dispatch_pb2 import ExpertRows
from router.core import Router
from router.levels import TokenGates
from transport.address import Address
from transport.base import Answer, DegradedRows, Peer, Request
from transport.errors import CallError
from transport.local import LocalPeer
from transport.loop import Timer
from transport.replicas import CallLater, Replicas
from transport.table import ShardEntry, ShardKey
from transport.tensors import layer_header


@dataclass(frozen=True)
class Weights:
    """One layer's experts and gate."""

    gate_ED: Tensor
    gate_up_E2FD: Tensor
    down_EDF: Tensor

    def expert(self, expert: int, rows_TD: Tensor, columns: slice = slice(None)) -> Tensor:
        """One expert, or the share of some of its columns, written out."""
        gate_FD, up_FD = self.gate_up_E2FD[expert].chunk(2)
        hidden_TF = F.silu(rows_TD @ gate_FD[columns].T) * (rows_TD @ up_FD[columns].T)
        return hidden_TF @ self.down_EDF[expert][:, columns].T

    def naive(self, rows_TD: Tensor, top_k: int, missing: Collection[int] = ()) -> Tensor:
        """What the router is to answer, one row and one expert at a time."""
        answer_TD = torch.zeros_like(rows_TD)
        for row in range(rows_TD.shape[0]):
            logits_E = self.gate_ED @ rows_TD[row]
            logits_E[list(missing)] = -torch.inf
            chosen_K, experts_K = logits_E.topk(min(top_k, len(logits_E) - len(missing)))
            for weight, expert in zip(chosen_K.softmax(0), experts_K.tolist(), strict=True):
                answer_TD[row] += weight * self.expert(expert, rows_TD[row : row + 1])[0]
        return answer_TD


def random_weights(num_experts: int, width: int, ffn_size: int, generator: torch.Generator) -> Weights:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    return Weights(
        gate_ED=normal(num_experts, width) * 3,
        gate_up_E2FD=normal(num_experts, 2 * ffn_size, width) * 2,
        down_EDF=normal(num_experts, width, ffn_size) * 2,
    )


def cut(num_experts: int, per_actor: int, num_slices: int, num_replicas: int = 1) -> tuple[ShardEntry, ...]:
    """A routing table's shards; the replica's address says which cut, shard and replica it is."""
    shards: list[ShardEntry] = []
    for start in range(0, num_experts, per_actor):
        expert_ids = tuple(range(start, min(start + per_actor, num_experts)))
        for index in range(num_slices):
            names = [f"{per_actor}/{num_slices}/{start}/{index}/{replica}" for replica in range(num_replicas)]
            replicas = tuple(Address("here", name, "", 0) for name in names)
            shards.append(ShardEntry(expert_ids, index, num_slices, replicas))
    return tuple(shards)


def serve_shard(layers: Sequence[Weights], entry: ShardEntry) -> Callable[[list[Request]], None]:
    """The service of one shard, written out."""
    ffn_size = layers[0].down_EDF.shape[2]
    width = ffn_size // entry.num_slices
    last = entry.slice_index == entry.num_slices - 1
    columns = slice(entry.slice_index * width, ffn_size if last else (entry.slice_index + 1) * width)

    def serve(requests: list[Request]) -> None:
        for request in requests:
            asked: ExpertRows = request.header.expert_rows
            counts = list(asked.num_rows_per_expert)
            parts = request.rows_TD.float().split(counts)
            assert set(asked.expert_ids) <= set(entry.expert_ids)
            layer = layers[asked.layer]
            outputs = [layer.expert(e, rows, columns) for e, rows in zip(asked.expert_ids, parts, strict=True)]
            request.responder.reply(torch.cat(outputs))

    return serve


def never(delay_s: float, callback: Callable[[], None]) -> Timer:
    return Timer(delay_s, callback)


def make_router(
    layers: Sequence[Weights],
    top_k: int,
    shards: tuple[ShardEntry, ...],
    wrap: Callable[[ShardKey, Peer], Peer] = lambda key, peer: peer,
    degrade: bool = False,
    call_later: CallLater = never,
    later: tuple[ShardEntry, ...] = (),
) -> Router:
    """A router whose experts are in this process; `later`: shards that another routing table may name."""
    known = (*shards, *later)
    services = {address: (entry.key, serve_shard(layers, entry)) for entry in known for address in entry.replicas}

    def connect(address: Address) -> Peer:
        key, service = services[address]
        return wrap(key, LocalPeer(service))

    router = Router(TokenGates([layer.gate_ED for layer in layers], top_k), Replicas(connect, call_later, 1.0), degrade)
    router.update(shards)
    return router


class Answers:
    """Collects the answer to one request."""

    def __init__(self) -> None:
        self.received: list[Answer] = []

    def reply(self, rows_TD: Tensor, missing_experts: tuple[int, ...] = ()) -> None:
        self.received.append(DegradedRows(rows_TD, missing_experts) if missing_experts else rows_TD)

    def fail(self, error: CallError) -> None:
        self.received.append(error)

    @property
    def rows(self) -> Tensor:
        (answer,) = self.received
        assert isinstance(answer, Tensor), answer
        return answer

    @property
    def degraded(self) -> DegradedRows:
        (answer,) = self.received
        assert isinstance(answer, DegradedRows), answer
        return answer

    @property
    def error(self) -> CallError:
        (answer,) = self.received
        assert isinstance(answer, CallError)
        return answer


def layer_request(layer: int, rows_TD: Tensor) -> tuple[Request, Answers]:
    answers = Answers()
    return Request(layer_header(layer, rows_TD), rows_TD, answers), answers
