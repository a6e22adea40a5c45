"""Answers as JSON, by hand: what is the same in every chunk of a stream is written once, when the stream begins.

Everything is ASCII: some clients split a stream into lines at U+2028 or U+0085, which raw text may hold. What can be
large (log-probabilities, token ids) is written in slices, between which the event loop goes on, and stays in pieces.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protos.generation_pb2 import TokenLogprob
from serving.beside import Slices
from serving.choice import Delta
from serving.logprobs import (
    SLICE,
    Names,
    TokenBytes,
    render_chat_logprobs,
    render_legacy_logprobs,
    render_prompt_logprobs,
    to_json,
)
from serving.offsets import OutputOffsets, echoed_offsets
from serving.run import Job, Usage
from serving.tokenizer import TextCodec

DONE = "data: [DONE]\n\n"
OPEN_REASONS = '"finish_reason":null,"stop_reason":null'
OPEN_END = ',"logprobs":null,"finish_reason":null}]'

# Choice index, what is new, whether it is the choice's first -> JSON, in pieces.
RenderLogprobs = Callable[[int, Delta, bool], Awaitable[list[str]]]


class Counted(Protocol):
    """Knows the usage so far."""

    @property
    def usage(self) -> Usage: ...


@dataclass(frozen=True)
class Shape:
    """Where /v1/completions and /v1/chat/completions differ."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    whole_text: tuple[str, str]  # what stands before and after the text
    chunk_text: tuple[str, str]
    opening: str | None  # `delta` of a chunk before all others
    ending: str  # `delta`, or text, of the chunk that ends a choice
    prompt_in_choice: bool  # what is said of the prompt's tokens; else it is beside `choices`


COMPLETION = Shape(
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole_text=('"text":', ""),
    chunk_text=('"text":', ""),
    opening=None,
    ending='"text":""',
    prompt_in_choice=True,
)
CHAT = Shape(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole_text=('"message":{"role":"assistant","content":', ',"refusal":null}'),
    chunk_text=('"delta":{"content":', "}"),
    opening='"delta":{"role":"assistant","content":""}',
    ending='"delta":{}',
    prompt_in_choice=False,
)


@dataclass(frozen=True)
class Answer:
    """What one request wants its answer to hold."""

    shape: Shape
    request_id: str
    created: int
    model: str
    job: Job
    logprobs: RenderLogprobs | None = None
    prompt_logprobs: RenderLogprobs | None = None
    echo: bool = False
    return_token_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    def echo_text(self, index: int) -> str:
        """What stands before a choice's own text."""
        return (self.job.prompt_of(index).text or "") if self.echo else ""


async def legacy_logprobs(job: Job, codec: TextCodec, echo: bool, as_ids: bool = False) -> RenderLogprobs:
    """For /v1/completions; with `echo` the first chunk of a choice holds its prompt's tokens as well."""
    skip = job.skip_special_tokens
    before = await echoed_offsets(job.prompts, codec, skip) if echo else []
    outputs = [
        OutputOffsets(codec.detokenizer(skip, continues=True), len(job.prompt_of(index).text or "") if echo else 0)
        for index in range(len(job.prompts) * job.n)
    ]

    names = Names(codec.token_bytes, as_ids)

    async def render(index: int, delta: Delta, first: bool) -> list[str]:
        token_ids, offsets, slices = delta.token_ids, list[int](), Slices()
        for start in range(0, len(token_ids), SLICE):
            offsets += outputs[index].push(token_ids[start : start + SLICE])
            await slices.pause()
        logprobs: list[TokenLogprob | None] = [*delta.logprobs]
        if echo and first:
            token_ids = [*job.prompt_of(index).token_ids, *token_ids]
            offsets = [*before[index // job.n], *offsets]
            logprobs = [None, *delta.prompt_logprobs, *logprobs]
        return await render_legacy_logprobs(names, token_ids, offsets, logprobs)

    return render


def chat_logprobs(token_bytes: TokenBytes, as_ids: bool = False) -> RenderLogprobs:
    """For /v1/chat/completions."""
    names = Names(token_bytes, as_ids)
    return lambda _index, delta, _first: render_chat_logprobs(names, delta.logprobs)


def prompt_logprobs(token_bytes: TokenBytes) -> RenderLogprobs:
    """For both, of the prompt."""
    names = Names(token_bytes)
    return lambda _index, delta, _first: render_prompt_logprobs(names, delta.prompt_logprobs)


class StreamRenderer:
    """Server-sent events of one answer. A choice ends with a chunk of its own, without text, as OpenAI's do."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._head = "data: {" + _identity(answer, answer.shape.chunk_object)
        before, self._after_text = answer.shape.chunk_text
        num_choices = len(answer.job.prompts) * answer.job.n
        self._heads = [f'{self._head}"choices":[{{"index":{index},{before}' for index in range(num_choices)]
        self._close = (',"usage":null' if answer.include_usage and not answer.continuous_usage else "") + "}\n\n"
        self._plain_end = self._after_text + OPEN_END + self._close
        self._begun = [False] * num_choices
        self._is_plain = not (answer.logprobs or answer.return_token_ids or answer.continuous_usage)

    def plain_chunk(self, index: int, delta: Delta) -> str | None:
        """What a client needs to hear of `delta`, where that is text alone ("" for nothing yet); None: it is more."""
        if not self._begun[index] or not self._is_plain or delta.finish_reason is not None:
            return None
        text = delta.text
        return f"{self._heads[index]}{to_json(text)}{self._plain_end}" if text else ""

    async def full_chunk(self, index: int, delta: Delta, counted: Counted) -> list[str]:
        """All that a client may hear of `delta`, in pieces."""
        pieces: list[str] = []
        first, self._begun[index] = not self._begun[index], True
        if first or delta.text or (not self._is_plain and (delta.token_ids or delta.logprobs)):
            pieces += await self._news(index, delta, first, self._counted_close(counted))
        if delta.finish_reason is not None:
            pieces.append(self._last_chunk(index, delta, self._counted_close(counted)))
        return pieces

    async def _news(self, index: int, delta: Delta, first: bool, close: str) -> list[str]:
        answer = self._answer
        text = answer.echo_text(index) + delta.text if first else delta.text
        opening = self._opening(index, close) if first else ""
        end = await _choice_end(answer, index, delta, first, OPEN_REASONS)
        beside = await _prompt_beside(answer, delta) if first else []
        begin = f"{opening}{self._heads[index]}{to_json(text)}{self._after_text}"
        return [begin, *end, "}]", *beside, close]

    def _last_chunk(self, index: int, delta: Delta, close: str) -> str:
        token_ids = ',"token_ids":[]' if self._answer.return_token_ids else ""
        end = f'{self._answer.shape.ending},"logprobs":null,{_reasons(delta)}{token_ids}'
        return f'{self._head}"choices":[{{"index":{index},{end}}}]{_manta(delta.missing_experts)}{close}'

    def _counted_close(self, counted: Counted) -> str:
        return f',"usage":{_usage(counted.usage)}}}\n\n' if self._answer.continuous_usage else self._close

    def ending(self, usage: Usage) -> str:
        """What follows the last choice's end: the usage, if it was asked for, and [DONE]."""
        if not self._answer.include_usage:
            return DONE
        return f'{self._head}"choices":[],"usage":{_usage(usage)}}}\n\n{DONE}'

    def _opening(self, index: int, close: str) -> str:
        opening = self._answer.shape.opening
        return f'{self._head}"choices":[{{"index":{index},{opening}{OPEN_END}{close}' if opening else ""


async def render_whole(answer: Answer, deltas: list[Delta], usage: Usage) -> list[str]:
    """The answer of a request without `stream`, in pieces.

    `deltas` holds each choice's all, in order of their indices; it is emptied, so that nothing is held twice.
    """
    before, after = answer.shape.whole_text
    slices, missing, beside = Slices(), set[int](), list[str]()
    pieces = [f'{{{_identity(answer, answer.shape.whole_object)}"choices":[']
    for index in range(len(deltas)):
        delta, deltas[index] = deltas[index], Delta()
        missing.update(delta.missing_experts)
        text = answer.echo_text(index) + delta.text
        pieces.append(f'{"," if index else ""}{{"index":{index},{before}{to_json(text)}{after}')
        pieces += await _choice_end(answer, index, delta, True, _reasons(delta))
        pieces.append("}")
        if index == 0:
            beside = await _prompt_beside(answer, delta)
        await slices.pause()
    return [*pieces, f'],"usage":{_usage(usage)}', *beside, f"{_manta(sorted(missing))}}}"]


def _identity(answer: Answer, name: str) -> str:
    return (
        f'"id":{to_json(answer.request_id)},"object":"{name}","created":{answer.created},'
        f'"model":{to_json(answer.model)},'
    )


async def _choice_end(answer: Answer, index: int, delta: Delta, first: bool, reasons: str) -> list[str]:
    """What follows the text in a choice, in pieces."""
    logprobs = await answer.logprobs(index, delta, first) if answer.logprobs else ["null"]
    pieces = [',"logprobs":', *logprobs, f",{reasons}"]
    if answer.return_token_ids:
        pieces += _ids("token_ids", delta.token_ids)
    if first and answer.shape.prompt_in_choice:
        pieces += await _of_prompt(answer, index, delta)
    return pieces


def _reasons(delta: Delta) -> str:
    return f'"finish_reason":{to_json(delta.finish_reason)},"stop_reason":{to_json(delta.stop_reason)}'


async def _prompt_beside(answer: Answer, delta: Delta) -> list[str]:
    """What a chat is told of its prompt; `delta`: of its first choice."""
    return [] if answer.shape.prompt_in_choice else await _of_prompt(answer, 0, delta)


async def _of_prompt(answer: Answer, index: int, delta: Delta) -> list[str]:
    pieces = _ids("prompt_token_ids", answer.job.prompt_of(index).token_ids) if answer.return_token_ids else []
    if answer.prompt_logprobs is not None:
        pieces += [',"prompt_logprobs":', *await answer.prompt_logprobs(index, delta, True)]
    return pieces


def _ids(name: str, token_ids: Sequence[int]) -> list[str]:
    """One context of them takes 2 ms."""
    return [f',"{name}":', to_json(token_ids)]


def _manta(missing_experts: Sequence[int]) -> str:
    """Manta's own field: there only when something is to be said."""
    return f',"manta":{{"missing_experts":{to_json(missing_experts)}}}' if missing_experts else ""


def _usage(usage: Usage) -> str:
    total = usage.prompt_tokens + usage.completion_tokens
    return (
        f'{{"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens},'
        f'"total_tokens":{total}}}'
    )
