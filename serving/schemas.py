"""Request bodies: OpenAI's fields and those of vLLM's extensions that Manta honours.

The line below a field is what docs/api.md and /docs say of it. Fields that are not honoured are in `serving.fields`;
one that is in neither place is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serving.settings import RequestLimits

REQUEST_ID = r"\A[A-Za-z0-9._:-]{1,128}\z"  # it goes into a header
MAX_UINT32 = (1 << 32) - 1
# Beyond these a product with a logit could leave float32's range; within, a token's odds go from sure to none already.
MIN_REPETITION, MAX_REPETITION = 0.01, 100.0
MAX_TEMPERATURE = 1e6  # all tokens are as likely as each other long before
MAX_OPTIONS = 16  # fields of `stream_options`, those that there are not included
TOO_MANY = "too_many"  # pydantic's type of an error that says the limit

# Of JSON's types, none stands for another: `true` is no number, "1" is none, and 1 is not `true`.
STRICT = ConfigDict(strict=True)


def _as_list(value: object) -> object:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _top_k(value: object) -> object:
    off = not isinstance(value, bool) and value in (-1, 0)  # vLLM's two ways to say so
    return None if off else value


def _choice_count(value: object) -> object:
    return 1 if value is None else value


def _as_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_size(value: object, limit: int) -> object:
    """Before the entries are looked at: an object does not fail at its first wrong one, as a list does."""
    if isinstance(value, dict) and len(value) > limit:
        numbers = {"given": len(value), "limit": limit}
        raise PydanticCustomError(TOO_MANY, "{given} were asked for, at most {limit} are allowed", numbers)
    return value


def _few_biases(value: object, info: ValidationInfo) -> object:
    return _check_size(value, info.context.max_logit_bias) if isinstance(info.context, RequestLimits) else value


def _few_options(value: object) -> object:
    return _check_size(value, MAX_OPTIONS)


AS_WHOLE = BeforeValidator(_as_whole)  # JSON does not tell 2.0 from 2, and neither do some clients' languages
TokenId = Annotated[int, Field(ge=0, le=MAX_UINT32)]
TokenIdKey = Annotated[int, Field(ge=0, le=MAX_UINT32, strict=False)]  # JSON's keys are strings
Count = Annotated[int, Field(ge=0, le=MAX_UINT32), AS_WHOLE]


def _check_ending(add_generation_prompt: bool, continue_final_message: bool) -> None:
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message needs add_generation_prompt to be false")


class Body(BaseModel):
    """What all requests share."""

    # What is no field is looked at by `serving.unsupported`.
    model_config = STRICT | ConfigDict(
        extra="allow", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    model: str | None = None
    """The model's name, as /v1/models gives it; left out: the one that is served."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = STRICT | ConfigDict(extra="forbid")

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = False

    @field_validator("include_obfuscation")
    @classmethod
    def _check_obfuscation(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("chunks are not padded by this service; leave it out")
        return value


class GenerationBody(Body):
    """What both kinds of generation accept."""

    stream: bool | None = False
    """Send tokens as they come, as server-sent events."""
    stream_options: Annotated[StreamOptions | None, BeforeValidator(_few_options)] = None
    """Only with `stream`. `include_usage`: a chunk with the usage before the end, and `usage: null` in all others;
    `continuous_usage_stats` (vLLM): the usage so far in each; `include_obfuscation: true` is refused."""
    n: Annotated[int, Field(ge=1, le=MAX_UINT32), AS_WHOLE, BeforeValidator(_choice_count)] = 1
    """Choices for each prompt."""
    best_of: Count | None = None
    """Allowed if it is `n`: the best of more are not picked."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64), AS_WHOLE] | None = None
    """Fixes what is drawn; see [Seeds](#seeds)."""
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True), BeforeValidator(_as_list)] = []
    """A text that ends the answer, or a list of them."""
    max_tokens: Count | None = None
    """The most tokens of a choice; 0: none. Left out: 16 in completions; in chats what fits the context."""
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    """0: always the best token. Left out: 1."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from the best tokens that hold this share together; 0: the best token."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit for each time that it is in the output."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit once it is in the output."""
    logit_bias: Annotated[
        dict[TokenIdKey, Annotated[float, Field(ge=-100, le=100)]] | None, BeforeValidator(_few_biases)
    ] = None
    """Token id to what is added to its logit."""
    # vLLM's extensions
    top_k: Annotated[Annotated[int, Field(ge=1, le=MAX_UINT32), AS_WHOLE] | None, BeforeValidator(_top_k)] = None
    """Draw from so many of the best tokens; 0 or -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw from tokens with at least this share of the best one's probability."""
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION, le=MAX_REPETITION)] | None = None
    """Divides (or multiplies, below 0) the logits of tokens in prompt and output."""
    min_tokens: Count | None = None
    """Neither end-of-sequence nor a stop before so many tokens."""
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = None
    """Tokens that end the answer."""
    ignore_eos: bool | None = False
    """Go on after end-of-sequence."""
    include_stop_str_in_output: bool | None = False
    """Keep the stop that ended the answer."""
    skip_special_tokens: bool | None = True
    """Leave special tokens out of the text."""
    return_token_ids: bool | None = False
    """Add `token_ids` and `prompt_token_ids`."""
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    """Only these tokens may be drawn: end-of-sequence too must be among them, to be drawn."""
    bad_words: Annotated[list[str], Field(fail_fast=True)] | None = None
    """Texts that the answer must not hold: the token that would complete one is not drawn."""
    logprob_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    """With `logprobs`: report these tokens' log-probabilities instead of the best tokens'."""
    prompt_logprobs: Count | None = None
    """Add `prompt_logprobs`: each prompt token's log-probability and rank, and so many of the best tokens'. Not with
    `stream`. The first token has none."""
    return_tokens_as_token_ids: bool | None = False
    """With `logprobs`: name tokens `token_id:ID`, which tells those apart that are written alike."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_UINT32), AS_WHOLE] | None = None
    """Keep so many tokens of a longer prompt; -1: as many as fit beside the output."""
    truncation_side: Literal["left", "right"] | None = None
    """Where a prompt is cut: `left`, which is the default, keeps its last tokens, `right` its first."""
    priority: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), AS_WHOLE] | None = 0
    """Requests of a lower value leave the queue of a node first; see [Priority](#priority)."""
    request_id: Annotated[str, Field(pattern=REQUEST_ID)] | None = None
    """The answer's `id`, after its prefix: at most 128 letters, digits, `.`, `_`, `:` and `-`."""
    # Manta's own
    task: str | None = None
    """The task to route by, where the model does so (Manta's own)."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is allowed only when stream is true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs is allowed only when stream is false")
        if self.truncate_prompt_tokens == 0:
            raise ValueError("truncate_prompt_tokens is -1 or at least 1: a prompt needs a token")
        return self

    @property
    def output_limit(self) -> int | None:
        """The number of tokens asked for at most, if the client said."""
        return self.max_tokens


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is checked by `serving.prompts`."""

    prompt: Any
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    logprobs: Count | None = None
    """Report each token's log-probability, and so many of the best tokens'."""
    echo: bool | None = False
    """Put the prompt before the answer; with `logprobs`, its tokens are scored too."""
    add_special_tokens: bool | None = True
    """Let the tokenizer add its special tokens (such as the one that begins a text)."""
    split_special_tokens: bool | None = False
    """Write special tokens in the prompt out instead of obeying them; see [Special tokens](#special-tokens)."""


class ChatMessage(BaseModel):
    """One turn; parts of text are joined by `serving.prompts`, other keys reach the template unchanged."""

    model_config = STRICT | ConfigDict(extra="allow")

    role: str
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


class ChatTemplateFields(BaseModel):
    """How a list of messages becomes text."""

    model_config = STRICT | ConfigDict(use_attribute_docstrings=True)

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    """The turns; see [Messages](#messages)."""
    add_generation_prompt: bool = True
    """End the prompt with what begins an answer."""
    continue_final_message: bool = False
    """Go on with the last message instead of answering it; needs `add_generation_prompt: false`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template."""
    add_special_tokens: bool | None = False
    """Let the tokenizer add its special tokens: templates write their own."""
    split_special_tokens: bool | None = False
    """Write special tokens in messages out instead of obeying them; see [Special tokens](#special-tokens)."""

    @model_validator(mode="after")
    def _check_final(self) -> Self:
        _check_ending(self.add_generation_prompt, self.continue_final_message)
        return self


class ChatBody(ChatTemplateFields, GenerationBody):
    """POST /v1/chat/completions."""

    logprobs: bool | None = False
    """Report each token's log-probability."""
    top_logprobs: Count | None = None
    """With `logprobs`: also so many of the best tokens'."""
    max_completion_tokens: Count | None = None
    """The newer name of `max_tokens`, which it overrides."""

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is allowed only when logprobs is true")
        return self

    @property
    def output_limit(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeBody(Body):
    """POST /tokenize: a text, or messages."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None  # as for completions (true) or chats (false)
    split_special_tokens: bool | None = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        _check_ending(self.add_generation_prompt, self.continue_final_message)
        return self

    def chat(self) -> ChatTemplateFields:
        """The fields of a chat, when it is one."""
        return ChatTemplateFields(
            messages=self.messages or [],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
            add_special_tokens=self.add_special_tokens,
            split_special_tokens=self.split_special_tokens,
        )


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
