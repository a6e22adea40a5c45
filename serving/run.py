"""One request at work: submits its sequences, turns their messages into deltas, counts, and cleans up."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from protos.generation_pb2 import Submit
from serving.choice import Choice, Delta, TextRules
from serving.fanin import FanIn
from serving.generator import Generator
from serving.metrics import GatewayMetrics, SequenceTimer
from serving.prompts import Prompt
from serving.tokenizer import TextCodec


@dataclass(frozen=True)
class Job:
    """What to generate: `n` sequences for each prompt, prompt by prompt.

    `submits` is empty when nothing is to be generated (echo with max_tokens = 0): the choices end at once.
    """

    prompts: Sequence[Prompt]
    n: int
    submits: Sequence[Submit]
    rules: TextRules
    arrival_s: float  # time.monotonic() when the request came
    skip_special_tokens: bool = True

    def prompt_of(self, index: int) -> Prompt:
        """The prompt of choice `index`. Example, n = 2: choices 0 and 1 continue prompt 0, choice 2 prompt 1."""
        return self.prompts[index // self.n]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens paid for."""

    prompt_tokens: int
    completion_tokens: int


class Run:
    """`async with Run(...) as run`: leaving the block, for whatever reason, frees every sequence at once."""

    def __init__(self, job: Job, codec: TextCodec, generator: Generator, metrics: GatewayMetrics) -> None:
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in job.prompts)
        self._num_open = len(job.prompts) * job.n
        self._submits = job.submits
        self._generates = len(job.submits) > 0
        self._generator = generator
        self._metrics = metrics
        self._fanin: FanIn | None = None
        self.choices = [
            Choice(index, codec.detokenizer(job.skip_special_tokens, continues=True), job.rules)
            for index in range(self._num_open)
        ]
        self._timers = [
            SequenceTimer(metrics, len(job.prompt_of(index).token_ids), job.arrival_s)
            for index in range(len(job.submits))
        ]

    async def __aenter__(self) -> Self:
        self._fanin = FanIn(self._generator, self._submits)
        self._metrics.running_requests += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._fanin is not None
        self._metrics.running_requests -= 1
        await self._fanin.close()
        if any(choice.missing_experts for choice in self.choices):
            self._metrics.degraded_requests += 1
        left = kind is not None and not issubclass(kind, Exception)
        for timer in self._timers if left else ():
            timer.aborted()

    @property
    def done(self) -> bool:
        """Every choice has its finish reason."""
        return self._num_open == 0

    @property
    def usage(self) -> Usage:
        """Counted so far."""
        return Usage(self._num_prompt_tokens, sum(choice.num_tokens for choice in self.choices))

    async def step(self, deltas: dict[int, Delta]) -> None:
        """Waits for news and adds all of it to `deltas` (by choice index). Raises GenerationError."""
        if not self._generates:
            self._end_empty(deltas)
            return
        assert self._fanin is not None
        for index, output, now_s in await self._fanin.next():
            choice = self.choices[index]
            if choice.finish_reason is not None:
                continue  # on its way when the stop string was found
            self._timers[index].tokens(len(output.token_ids), now_s, output.queue_s)
            delta = deltas.get(index)
            if delta is None:
                delta = deltas[index] = Delta()
            choice.push(output, delta)
            self._close_if_finished(index, choice, now_s)

    def _close_if_finished(self, index: int, choice: Choice, now_s: float) -> None:
        if choice.finish_reason is None:
            return
        assert self._fanin is not None
        self._fanin.cancel(index)
        self._num_open -= 1
        self._timers[index].finished(choice.finish_reason, now_s)

    def _end_empty(self, deltas: dict[int, Delta]) -> None:
        deltas.update({choice.index: Delta(finish_reason="length") for choice in self.choices})
        self._num_open = 0
