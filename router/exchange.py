"""One layer's rows on their way through the experts: what was sent where, what came back. Pure bookkeeping.

T rows, D model dim, K chosen experts per row, N = T*K row copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos.dispatch_pb2 import Header
from router.plan import Plan, combine
from transport.base import Request
from transport.errors import CallError
from transport.table import ShardEntry, ShardKey
from transport.tensors import expert_header


@dataclass(frozen=True)
class ExpertRange:
    """Neighbouring experts held by the same shards: one shard, or one per slice of their columns."""

    expert_ids: tuple[int, ...]
    shards: tuple[ShardKey, ...]


def expert_ranges(shards: Sequence[ShardEntry], num_experts: int) -> tuple[ExpertRange, ...]:
    """Groups the routing table's shards by the experts they hold, in expert order.

    Raises:
        ValueError: The shards do not cover each expert, every slice of it, exactly once.
    """
    slices: dict[tuple[int, ...], list[ShardEntry]] = {}
    for entry in sorted(shards, key=lambda shard: shard.key):
        slices.setdefault(entry.expert_ids, []).append(entry)
    ordered = sorted(slices)
    covered = [expert for expert_ids in ordered for expert in expert_ids]
    if covered != list(range(num_experts)):
        raise ValueError(f"the shards hold experts {covered}; needed: each of 0 to {num_experts - 1}, once")
    for expert_ids, entries in slices.items():
        held = [(entry.slice_index, entry.num_slices) for entry in entries]
        if held != [(index, len(entries)) for index in range(len(entries))]:
            given = ", ".join(f"{index} of {num_slices}" for index, num_slices in held)
            raise ValueError(f"experts {expert_ids} have slices {given}; needed: each of 0 to num_slices - 1, once")
    return tuple(ExpertRange(ids, tuple(entry.key for entry in slices[ids])) for ids in ordered)


@dataclass(eq=False, slots=True)
class Part:
    """The rows of one exchange that one shard answers."""

    exchange: "Exchange"
    shard: ShardKey
    header: Header
    rows_ND: Tensor


class Exchange:
    """Collects the answers to one layer's rows and combines them.

    The slices of an expert are summed in slice order, whatever order they arrive in, so that outputs are reproducible.

    Args:
        missing_experts: Those that the plan does without; told with the reply.
    """

    def __init__(
        self,
        request: Request,
        sent_ND: Tensor,
        plan: Plan,
        ranges: Sequence[ExpertRange],
        missing_experts: tuple[int, ...] = (),
    ) -> None:
        self.request = request
        self._plan = plan
        self._missing_experts = missing_experts
        self._answers: dict[ShardKey, Tensor] = {}
        self._ranges: list[ExpertRange] = []
        self.finished = False
        self.parts: list[Part] = []
        start = 0
        for expert_range in ranges:
            counts = [plan.counts[expert] for expert in expert_range.expert_ids]
            stop = start + sum(counts)
            if stop > start:
                self._add(expert_range, counts, sent_ND[start:stop])
            start = stop

    def _add(self, expert_range: ExpertRange, counts: list[int], rows_ND: Tensor) -> None:
        self._ranges.append(expert_range)
        used = tuple((expert, count) for expert, count in zip(expert_range.expert_ids, counts, strict=True) if count)
        header = expert_header(self.request.header.layer_rows.layer, used, rows_ND)
        for shard in expert_range.shards:
            self.parts.append(Part(self, shard, header, rows_ND))

    def take(self, part: Part, answer_ND: Tensor) -> None:
        """Notes one shard's answer; replies to the request when it was the last."""
        if self.finished:
            return
        if answer_ND.shape != part.rows_ND.shape:
            got, sent = tuple(answer_ND.shape), tuple(part.rows_ND.shape)
            self.fail(CallError("internal", f"{part.shard} answered rows of shape {got} to rows of shape {sent}"))
            return
        self._answers[part.shard] = answer_ND
        if len(self._answers) == len(self.parts):
            self.finished = True
            self.request.responder.reply(self._combined(), self._missing_experts)

    def fail(self, error: CallError) -> None:
        """Answers the request with an error, unless it has been answered."""
        if not self.finished:
            self.finished = True
            self.request.responder.fail(error)

    def abandon(self) -> bool:
        """Ignores whatever comes from now on; False if the request has been answered."""
        was_open, self.finished = not self.finished, True
        return was_open

    def _combined(self) -> Tensor:
        summed: list[Tensor] = []
        for expert_range in self._ranges:
            total_ND = self._answers[expert_range.shards[0]]
            for shard in expert_range.shards[1:]:
                total_ND = total_ND + self._answers[shard]
            summed.append(total_ND)
        return combine(self._plan, summed[0] if len(summed) == 1 else torch.cat(summed))
