"""Request bodies: OpenAI's fields and those of vLLM's extensions that Manta honours.

Fields that are not honoured are in `serving.unsupported`; whatever is in neither place is ignored with a warning.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_UINT32 = (1 << 32) - 1

TokenId = Annotated[int, Field(ge=0, le=MAX_UINT32)]
Count = Annotated[int, Field(ge=0, le=MAX_UINT32)]


def _as_list(value: object) -> object:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _top_k(value: object) -> object:
    return None if value in (-1, 0) else value  # vLLM's two ways to say "off"


def _choice_count(value: object) -> object:
    return 1 if value is None else value


def _check_ending(add_generation_prompt: bool, continue_final_message: bool) -> None:
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message needs add_generation_prompt to be false")


class Body(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None


class StreamOptions(BaseModel):
    """`stream_options`."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerationBody(Body):
    """What both kinds of generation accept."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1), BeforeValidator(_choice_count)] = 1
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)] = []
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    # vLLM's extensions
    top_k: Annotated[Annotated[int, Field(ge=1, le=MAX_UINT32)] | None, BeforeValidator(_top_k)] = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = False
    include_stop_str_in_output: bool | None = False
    skip_special_tokens: bool | None = True
    return_token_ids: bool | None = False
    # Manta's own
    task: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is allowed only when stream is true")
        return self

    @property
    def output_limit(self) -> int | None:
        """The number of tokens asked for at most, if the client said."""
        return self.max_tokens


class CompletionBody(GenerationBody):
    """POST /v1/completions. `prompt` is checked by `serving.prompts`."""

    prompt: Any
    logprobs: Count | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = True


class ChatMessage(BaseModel):
    """One turn; parts of text are joined by `serving.prompts`, other keys reach the template unchanged."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatTemplateFields(BaseModel):
    """How a list of messages becomes text."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = False  # the template writes them itself

    @model_validator(mode="after")
    def _check_final(self) -> Self:
        _check_ending(self.add_generation_prompt, self.continue_final_message)
        return self


class ChatBody(ChatTemplateFields, GenerationBody):
    """POST /v1/chat/completions."""

    logprobs: bool | None = False
    top_logprobs: Count | None = None
    max_completion_tokens: Count | None = None

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
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None  # as for completions (true) or chats (false)
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
        )


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[TokenId]
