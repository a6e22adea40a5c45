"""Answers as JSON, by hand: what is the same in every chunk of a stream is written once, when the stream begins.

Everything is ASCII: some clients split a stream into lines at U+2028 or U+0085, which raw text may hold.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protos.generation_pb2 import TokenLogprob
from serving.choice import Delta
from serving.logprobs import TokenBytes, render_chat_logprobs, render_legacy_logprobs
from serving.offsets import OutputOffsets, echoed_offsets
from serving.run import Job, Usage
from serving.tokenizer import TextCodec

to_json = json.JSONEncoder(separators=(",", ":")).encode
DONE = "data: [DONE]\n\n"
PLAIN_END = ',"logprobs":null,"finish_reason":null}]}\n\n'

# Choice index, what is new, whether it is the choice's first -> JSON.
RenderLogprobs = Callable[[int, Delta, bool], str]


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
    prompt_ids_in_choice: bool  # else beside `choices`


COMPLETION = Shape(
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole_text=('"text":', ""),
    chunk_text=('"text":', ""),
    opening=None,
    prompt_ids_in_choice=True,
)
CHAT = Shape(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole_text=('"message":{"role":"assistant","content":', ',"refusal":null}'),
    chunk_text=('"delta":{"content":', "}"),
    opening='"delta":{"role":"assistant","content":""}',
    prompt_ids_in_choice=False,
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
    echo: bool = False
    return_token_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    def echo_text(self, index: int) -> str:
        """What stands before a choice's own text."""
        return (self.job.prompt_of(index).text or "") if self.echo else ""


async def legacy_logprobs(job: Job, codec: TextCodec, echo: bool) -> RenderLogprobs:
    """For /v1/completions; with `echo` the first chunk of a choice holds its prompt's tokens as well."""
    skip = job.skip_special_tokens
    before = await echoed_offsets(job.prompts, codec, skip) if echo else []
    outputs = [
        OutputOffsets(codec.detokenizer(skip, continues=True), len(job.prompt_of(index).text or "") if echo else 0)
        for index in range(len(job.prompts) * job.n)
    ]

    def render(index: int, delta: Delta, first: bool) -> str:
        token_ids, offsets = delta.token_ids, outputs[index].push(delta.token_ids)
        logprobs: list[TokenLogprob | None] = [*delta.logprobs]
        if echo and first:
            token_ids = [*job.prompt_of(index).token_ids, *token_ids]
            offsets = [*before[index // job.n], *offsets]
            logprobs = [None, *delta.prompt_logprobs, *logprobs]
        return render_legacy_logprobs(codec.token_bytes, token_ids, offsets, logprobs)

    return render


def chat_logprobs(token_bytes: TokenBytes, num_top: int) -> RenderLogprobs:
    """For /v1/chat/completions."""
    return lambda _index, delta, _first: render_chat_logprobs(token_bytes, delta.logprobs, num_top)


class StreamRenderer:
    """Server-sent events of one answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._head = "data: {" + _identity(answer, answer.shape.chunk_object)
        before, self._after_text = answer.shape.chunk_text
        num_choices = len(answer.job.prompts) * answer.job.n
        self._heads = [f'{self._head}"choices":[{{"index":{index},{before}' for index in range(num_choices)]
        self._plain_end = self._after_text + PLAIN_END
        self._begun = [False] * num_choices
        self._is_plain = not (answer.logprobs or answer.return_token_ids or answer.continuous_usage)

    def chunk(self, index: int, delta: Delta, counted: Counted) -> str:
        """What a client needs to hear of `delta`; "" when that is nothing yet."""
        if self._begun[index] and self._is_plain and delta.finish_reason is None:
            text = delta.text
            return f"{self._heads[index]}{to_json(text)}{self._plain_end}" if text else ""
        return self._full_chunk(index, delta, counted)

    def ending(self, usage: Usage) -> str:
        """What follows the last choice's end: the usage, if it was asked for, and [DONE]."""
        if not self._answer.include_usage:
            return DONE
        return f'{self._head}"choices":[],"usage":{_usage(usage)}}}\n\n{DONE}'

    def _full_chunk(self, index: int, delta: Delta, counted: Counted) -> str:
        answer = self._answer
        first, self._begun[index] = not self._begun[index], True
        text = answer.echo_text(index) + delta.text if first else delta.text
        end = _choice_end(answer, index, delta, first)
        beside = _prompt_ids_beside(answer, index) if first else ""
        beside += _manta(delta.missing_experts)
        if answer.continuous_usage:
            beside += f',"usage":{_usage(counted.usage)}'
        opening = self._opening(index) if first else ""
        return f"{opening}{self._heads[index]}{to_json(text)}{self._after_text}{end}}}]{beside}}}\n\n"

    def _opening(self, index: int) -> str:
        opening = self._answer.shape.opening
        return f'{self._head}"choices":[{{"index":{index},{opening}{PLAIN_END}' if opening else ""


def render_whole(answer: Answer, deltas: Sequence[Delta], usage: Usage) -> str:
    """The answer of a request without `stream`; `deltas` holds each choice's all, in order of their indices."""
    before, after = answer.shape.whole_text
    choices: list[str] = []
    for index, delta in enumerate(deltas):
        text = answer.echo_text(index) + delta.text
        end = _choice_end(answer, index, delta, first=True)
        choices.append(f'{{"index":{index},{before}{to_json(text)}{after}{end}}}')
    identity = _identity(answer, answer.shape.whole_object)
    missing = {expert for delta in deltas for expert in delta.missing_experts}
    beside = _prompt_ids_beside(answer, 0) + _manta(sorted(missing))
    return f'{{{identity}"choices":[{",".join(choices)}],"usage":{_usage(usage)}{beside}}}'


def _identity(answer: Answer, name: str) -> str:
    return (
        f'"id":{to_json(answer.request_id)},"object":"{name}","created":{answer.created},'
        f'"model":{to_json(answer.model)},'
    )


def _choice_end(answer: Answer, index: int, delta: Delta, first: bool) -> str:
    """What follows the text in a choice."""
    logprobs = answer.logprobs(index, delta, first) if answer.logprobs else "null"
    end = (
        f',"logprobs":{logprobs},"finish_reason":{to_json(delta.finish_reason)},'
        f'"stop_reason":{to_json(delta.stop_reason)}'
    )
    if answer.return_token_ids:
        end += f',"token_ids":{to_json(delta.token_ids)}'
        if first and answer.shape.prompt_ids_in_choice:
            end += f',"prompt_token_ids":{to_json(answer.job.prompt_of(index).token_ids)}'
    return end


def _prompt_ids_beside(answer: Answer, index: int) -> str:
    if not answer.return_token_ids or answer.shape.prompt_ids_in_choice:
        return ""
    return f',"prompt_token_ids":{to_json(answer.job.prompt_of(index).token_ids)}'


def _manta(missing_experts: Sequence[int]) -> str:
    """Manta's own field: there only when something is to be said."""
    return f',"manta":{{"missing_experts":{to_json(missing_experts)}}}' if missing_experts else ""


def _usage(usage: Usage) -> str:
    total = usage.prompt_tokens + usage.completion_tokens
    return (
        f'{{"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens},'
        f'"total_tokens":{total}}}'
    )
