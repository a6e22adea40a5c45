"""Answers ExpertRows: merges whatever rows wait for the same layer and expert into one matmul.

N rows, D model dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experts.ffn import ExpertFFN
from experts.shard import ExpertShard
from transport.base import Request
from transport.errors import CallError


@dataclass(slots=True)
class _Work:
    """The rows of every waiting request that go to one expert, and where each request's share belongs."""

    ffn: ExpertFFN
    rows: list[Tensor] = field(default_factory=list[Tensor])
    places: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


class ExpertService:
    """The computation of an expert actor; `num_rows` counts what it has done.

    Args:
        on_progress: Called after each product; once, after a request served alone that is no more work than one product
            may be.
    """

    def __init__(
        self, shard: ExpertShard, device: torch.device, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        self._shard = shard
        self._device = device
        self._on_progress = on_progress
        self.num_rows = 0

    def serve(self, requests: Sequence[Request]) -> None:
        """Answers every request; one that is malformed fails alone."""
        if len(requests) == 1:
            self._serve_one(requests[0])
        else:
            self._serve_merged(requests)

    def _serve_one(self, request: Request) -> None:
        """What `_serve_merged` does, with nothing to merge: the way of a sequence that decodes alone."""
        try:
            parts = self._split(request.header.expert_rows.layer, request)
        except CallError as error:
            request.responder.fail(error)
            return
        num_rows = request.rows_TD.size(0)
        self.num_rows += num_rows
        if num_rows <= parts[0][1].max_rows:  # a small one takes 20 µs: telling after each would cost 2 % of it
            outputs = [ffn.product(rows_ND) for _, ffn, rows_ND in parts]
            self._on_progress()
        else:
            outputs = [ffn(rows_ND, self._on_progress) for _, ffn, rows_ND in parts]
        _reply(request, outputs)

    def _serve_merged(self, requests: Sequence[Request]) -> None:
        by_layer: dict[int, list[Request]] = {}
        for request in requests:
            by_layer.setdefault(request.header.expert_rows.layer, []).append(request)
        for layer, group in by_layer.items():
            self._serve_layer(layer, group)

    def _serve_layer(self, layer: int, requests: Sequence[Request]) -> None:
        work: dict[int, _Work] = {}
        accepted: list[Request] = []
        answers: list[list[Tensor]] = []
        for request in requests:
            try:
                parts = self._split(layer, request)
            except CallError as error:
                request.responder.fail(error)
                continue
            for place, (expert, ffn, rows_ND) in enumerate(parts):
                item = work.setdefault(expert, _Work(ffn))
                item.rows.append(rows_ND)
                item.places.append((len(accepted), place))
            accepted.append(request)
            self.num_rows += request.rows_TD.shape[0]
            answers.append([request.rows_TD] * len(parts))
        for item in work.values():
            self._compute(item, answers)
        for request, outputs in zip(accepted, answers, strict=True):
            _reply(request, outputs)

    def _compute(self, item: _Work, answers: list[list[Tensor]]) -> None:
        """Runs one expert over everything that waits for it, and puts each share into its place."""
        if len(item.rows) == 1:
            request, place = item.places[0]
            answers[request][place] = item.ffn(item.rows[0], self._on_progress)
            return
        output_ND = item.ffn(torch.cat(item.rows), self._on_progress)
        shares = output_ND.split([rows.shape[0] for rows in item.rows])
        for (request, place), share in zip(item.places, shares, strict=True):
            answers[request][place] = share

    def _split(self, layer: int, request: Request) -> list[tuple[int, ExpertFFN, Tensor]]:
        """Returns (expert, its network, its rows) in the order of the request.

        Raises:
            CallError: Another layer or expert than this shard's, or counts that do not add up.
        """
        header, rows_TD = request.header.expert_rows, request.rows_TD
        if len(header.num_rows_per_expert) > self._shard.num_experts:
            num, allowed = len(header.num_rows_per_expert), self._shard.num_experts
            raise CallError("invalid_request", f"{num} counts of rows; allowed: one for each of the {allowed} experts")
        counts = list(header.num_rows_per_expert)
        if len(counts) != len(header.expert_ids) or sum(counts) != rows_TD.shape[0] or not counts or 0 in counts:
            raise CallError("invalid_request", f"row counts {counts} do not describe {rows_TD.shape[0]} rows")
        if rows_TD.shape[1] != self._shard.width:
            raise CallError("invalid_request", f"rows of {rows_TD.shape[1]} elements; allowed: {self._shard.width}")
        rows_ND = rows_TD.to(self._device, self._shard.dtype)
        parts: list[tuple[int, ExpertFFN, Tensor]] = []
        start = 0
        for expert, count in zip(header.expert_ids, counts, strict=True):
            ffn = self._shard.ffn(layer, expert)
            if ffn is None:
                raise CallError("invalid_request", f"layer {layer}, expert {expert} is not of this shard")
            parts.append((expert, ffn, rows_ND[start : start + count]))
            start += count
        return parts


def _reply(request: Request, outputs: list[Tensor]) -> None:
    request.responder.reply(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
