"""The router: gate, scatter, gather, combine. Stateless between requests; transport and time are given from outside."""

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from router.exchange import Exchange, ExpertRange, Part, expert_ranges
from router.levels import Gates
from transport.base import Answer, Request
from transport.errors import CallError
from transport.replicas import Replicas
from transport.table import ShardEntry, ShardKey
from transport.tries import NO_TRIES, Tries


class Router:
    """Answers LayerRows with the combined expert outputs.

    Args:
        gates: What chooses a row's experts (`load_gates`).
        experts: The expert replicas, in groups named by ShardKey.
        degrade: Whether rows go without experts that have no replica at present, instead of waiting for one
            (`experts.on_missing`).
    """

    def __init__(self, gates: Gates, experts: Replicas, degrade: bool = False) -> None:
        self._gates = gates
        self._num_experts = gates.num_experts
        self._experts = experts
        self._degrade = degrade
        self._ranges: tuple[ExpertRange, ...] = ()
        self._latest: ShardKey | None = None
        self.rows_per_expert = [0] * self._num_experts
        self.num_degraded_rows = 0

    def update(self, shards: tuple[ShardEntry, ...], on_change_over: Callable[[], None] = lambda: None) -> None:
        """Takes over a new routing table; if its shards are others, once each of them can be reached.

        Args:
            on_change_over: Called when it has.

        Raises:
            ValueError: Its shards do not cover the experts.
        """
        ranges = expert_ranges(shards, self._num_experts)

        def change_over() -> None:
            self._ranges = ranges
            on_change_over()

        self._experts.update({entry.key: entry.replicas for entry in shards}, change_over)

    @property
    def ready(self) -> bool:
        """Whether every shard has a connected replica."""
        return self._experts.complete

    @property
    def degraded(self) -> bool:
        """Whether it serves without some of the experts."""
        return self._degrade and 0 < len(self._missing_experts()) < self._num_experts

    @property
    def _may_degrade(self) -> bool:
        return self._degrade and not self._experts.changing

    def serve(self, requests: Sequence[Request]) -> None:
        """Starts on each request; the answers follow when the experts have answered."""
        for request in requests:
            try:
                self._gates.check(request)
            except CallError as error:
                request.responder.fail(error)
                continue
            self._start(request)

    def _start(self, request: Request, tries: Tries = NO_TRIES) -> None:
        # While another layout is about to take over, what the present one misses is not missing for long.
        missing = self._missing_experts() if self._may_degrade else ()
        if missing and len(missing) == self._num_experts:
            self._wait_for_any(request, tries)
            return
        sent_ND, plan = self._gates.route(request, missing)
        if missing:
            self.num_degraded_rows += plan.weights_TK.shape[0]
        parts = Exchange(request, sent_ND, plan, self._ranges, missing).parts
        # Who was waited for the last time is asked first: what remains to be sent meanwhile is time won.
        parts.sort(key=lambda part: part.shard != self._latest)
        for part in parts:
            self._send(part, tries)
        for expert, count in enumerate(plan.counts):
            self.rows_per_expert[expert] += count

    def _send(self, part: Part, tries: Tries) -> None:
        def answered(answer: Answer) -> None:
            if not isinstance(answer, Tensor):
                part.exchange.fail(_why(answer, part))
                return
            part.exchange.take(part, answer.to(part.rows_ND.device))
            if part.exchange.finished:
                self._latest = part.shard

        start_again = functools.partial(self._start_again, part.exchange)
        on_none = start_again if self._may_degrade else None
        self._experts.call(part.shard, part.header, part.rows_ND, answered, on_none, start_again, tries)

    def _missing_experts(self) -> tuple[int, ...]:
        """Returns the experts that cannot be asked now, ascending: no replica of theirs, or of a slice, is ready."""
        has_ready = self._experts.has_ready
        return tuple(
            expert
            for expert_range in self._ranges
            if not all(map(has_ready, expert_range.shards))
            for expert in expert_range.expert_ids
        )

    def _wait_for_any(self, request: Request, tries: Tries) -> None:
        """Starts on a request as soon as an expert, whichever it is, lives again."""
        self._experts.wait(
            "expert",
            lambda: len(self._missing_experts()) < self._num_experts,
            lambda: self._start(request, tries),
            request.responder.fail,
        )

    def _start_again(self, exchange: Exchange, tries: Tries) -> None:
        """Routes a request anew: since it was routed, a shard that it needs was given up or lost its last replica."""
        if exchange.abandon():
            self._start(exchange.request, tries)


def _why(answer: Answer, part: Part) -> CallError:
    """Returns why an answer that is no rows fails its request."""
    if isinstance(answer, CallError):
        return answer
    return CallError("internal", f"{part.shard} answered as only routers do: with missing experts")
