"""A generator that replays given token ids: the gateway's tests and its measurements need no model."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from protos.generation_pb2 import LENGTH, STOP, UNFINISHED, SequenceOutput, Submit, TokenLogprob
from serving.generator import GenerationError
from serving.metrics import MetricsSnapshot

SCORED_IN_A_STEP = 512  # tokens of a prompt


@dataclass
class FakeGenerator:
    """Replays `outputs` (cycled over submissions, repeated until max_tokens), honouring the rules a node honours.

    With no `outputs` it echoes the prompt's ids. `failures` maps the number of tokens after which a sequence
    fails to its error, `missing_experts` the number of a token (the first is 1) to the experts named with it;
    `tokens_per_message` coalesces; `delay_s` is the pause before each message; while `capacity` sequences live, one
    more is refused, as by `num_nodes` nodes whose queues are full.
    `running` counts live sequences (`most_running`: at a time), `cancelled` those closed early, `refused` those beyond
    the capacity.
    """

    outputs: Sequence[Sequence[int]] = ()
    eos_token_ids: frozenset[int] = frozenset()
    delay_s: float = 0.0
    tokens_per_message: int = 1
    max_context: int = 1 << 20
    capacity: int | None = None
    num_nodes: int = 1
    failures: Mapping[int, GenerationError] = field(default_factory=dict[int, GenerationError])
    missing_experts: Mapping[int, Sequence[int]] = field(default_factory=dict[int, Sequence[int]])
    snapshots: list[MetricsSnapshot] = field(default_factory=list[MetricsSnapshot])
    submits: list[Submit] = field(default_factory=list[Submit])
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    refused: int = 0

    async def generate(self, submit: Submit) -> AsyncIterator[SequenceOutput]:
        """See `serving.generator.Generator`."""
        if self.running == self.capacity:
            self.refused += 1
            raise GenerationError("queue_full", f"{self.running} sequences run already")
        source = self.outputs[len(self.submits) % len(self.outputs)] if self.outputs else list(submit.prompt_ids)
        self.submits.append(submit)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        finished = False
        try:
            async for output in self._replay(submit, source):
                finished = output.finish_reason != UNFINISHED
                yield output
        except GenerationError:
            finished = True
            raise
        finally:
            self.running -= 1
            self.cancelled += not finished

    async def _replay(self, submit: Submit, source: Sequence[int]) -> AsyncIterator[SequenceOutput]:
        output = await _first_output(submit)
        limit = self._limit(submit)
        for num_tokens in range(limit):
            await self._pause_and_fail(num_tokens)
            self._append(output, submit, source[num_tokens % len(source)], num_tokens + 1)
            if output.finish_reason == STOP:
                break
            if num_tokens + 1 < limit and len(output.token_ids) >= self.tokens_per_message:
                yield output
                output = SequenceOutput()
        if output.finish_reason == UNFINISHED:
            output.finish_reason = LENGTH
        yield output

    def _limit(self, submit: Submit) -> int:
        room = self.max_context - len(submit.prompt_ids)
        return min(room, submit.sampling.max_tokens) if submit.sampling.HasField("max_tokens") else room

    async def _pause_and_fail(self, num_tokens: int) -> None:
        if num_tokens % self.tokens_per_message == 0:
            await asyncio.sleep(self.delay_s)
        if num_tokens in self.failures:
            raise self.failures[num_tokens]

    def _append(self, output: SequenceOutput, submit: Submit, token_id: int, num_tokens: int) -> None:
        sampling = submit.sampling
        output.token_ids.append(token_id)
        output.missing_experts.extend(self.missing_experts.get(num_tokens, ()))
        if sampling.HasField("logprobs"):
            output.logprobs.append(fake_logprob(token_id, sampling.logprobs, sampling.logprob_token_ids))
        ends = token_id in sampling.stop_token_ids or (token_id in self.eos_token_ids and not sampling.ignore_eos)
        if ends and num_tokens > sampling.min_tokens:
            output.finish_reason = STOP
            output.stop_token_id = token_id

    async def fleet_metrics(self) -> list[MetricsSnapshot]:
        """See `serving.generator.Generator`."""
        return self.snapshots


async def _first_output(submit: Submit) -> SequenceOutput:
    output = SequenceOutput(queue_s=0.001)
    if submit.sampling.prompt_logprobs:
        scored = submit.prompt_ids[1:]
        for start in range(0, len(scored), SCORED_IN_A_STEP):
            of_step = scored[start : start + SCORED_IN_A_STEP]
            output.prompt_logprobs.extend(_prompt_logprobs(of_step, submit.sampling.prompt_alternatives))
            await asyncio.sleep(0)  # what a node takes a step for is not made in one turn of the loop
    return output


def _prompt_logprobs(token_ids: Iterable[int], num_alternatives: int) -> Iterable[TokenLogprob]:
    return (fake_logprob(token_id, num_alternatives) for token_id in token_ids)


def fake_logprob(token_id: int, num_alternatives: int, listed: Sequence[int] = ()) -> TokenLogprob:
    """A log-probability that depends on nothing but the arguments; the chosen token is always the best."""
    alternative_ids = listed or range(token_id, token_id + num_alternatives)
    return TokenLogprob(
        token_id=token_id,
        logprob=-0.5,
        rank=1,
        alternative_ids=alternative_ids,
        alternative_logprobs=[-0.5 - 0.25 * i for i in range(len(alternative_ids))],
    )
