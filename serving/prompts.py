"""What the client wrote, as token ids: texts, ids, lists of either, or a chat."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from serving.beside import THREAD_FROM_TOKENS, beside, in_thread
from serving.chat_template import ChatTemplateError
from serving.errors import ApiError, context_exceeded, invalid, short, shown
from serving.schemas import MAX_UINT32, ChatMessage, ChatTemplateFields
from serving.settings import GatewaySettings, RequestLimits
from serving.splitting import Marks
from serving.tokenizer import NoTokenizer, TextCodec
from serving.truncation import WHOLE, Truncation
from serving.unsupported import check_limit

PROMPT_FORMS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"
REFUSED_MESSAGE_KEYS = ("tool_calls", "function_call", "audio", "tool_call_id")
ROLES = ("system", "developer", "user", "assistant")
MESSAGE_TOKENS = 16  # what rendering a message costs, in tokens of other work
MAX_TEMPLATE_CHARS = 200  # of what a template says when it refuses messages; they may be part of it
ROLE_OF = {"developer": "system"}  # for templates that name but the older one


@dataclass(frozen=True)
class Prompt:
    """One prompt; `text` is what the client wrote, None where it sent ids."""

    token_ids: list[int]
    text: str | None = None


def split_prompts(prompt: object, limits: RequestLimits) -> list[str] | list[list[int]]:
    """The prompts of a completion request; ids are looked at by `encode_prompts`.

    Raises ApiError (400) naming `prompt` for any other form, and for too many of them.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        items = cast("list[Any]", prompt)
        if isinstance(items[0], str | list):
            check_limit("prompt", len(items), limits.max_prompts)
        kinds = set(map(type, items))  # `type`: True and False are ints to isinstance
        if kinds == {int}:
            return [cast("list[int]", items)]
        if kinds == {str} or (kinds == {list} and all(items)):
            return items
    raise _bad_form(prompt)


def _bad_form(prompt: object) -> ApiError:
    return invalid(f"prompt: it must be {PROMPT_FORMS}, and not empty (given: {shown(prompt)}).", "prompt")


async def encode_prompts(
    prompts: Sequence[str] | Sequence[list[int]],
    codec: TextCodec,
    settings: GatewaySettings,
    add_special_tokens: bool,
    truncation: Truncation = WHOLE,
    split_special_tokens: bool = False,
) -> list[Prompt]:
    """Token ids of every prompt, which fit the context alone. Raises ApiError (400) at the first that does not."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]  # all of them, or none
    budget = _TokenBudget(settings, truncation)
    if texts:
        token_ids = await encode_texts(
            texts, codec, settings, add_special_tokens, "prompt", budget.take, split_special_tokens
        )
        return [_cut(Prompt(ids, text), truncation) for ids, text in zip(token_ids, texts, strict=True)]
    encoded: list[Prompt] = []
    for prompt in prompts:
        assert isinstance(prompt, list)
        budget.count(len(prompt))
        if set(map(type, prompt)) != {int} or min(prompt) < 0 or max(prompt) > MAX_UINT32:
            raise _bad_form(prompts if len(prompts) > 1 else prompt)
        check_ids(prompt, settings, "prompt")
        encoded.append(_cut(Prompt(prompt), truncation))
        await asyncio.sleep(0)  # a context of ids takes milliseconds
    return encoded


def _cut(prompt: Prompt, truncation: Truncation) -> Prompt:
    """The prompt, or what is kept of it; its text is then what the tokens stand for."""
    token_ids = truncation.cut(prompt.token_ids)
    return prompt if len(token_ids) == len(prompt.token_ids) else Prompt(token_ids)


class _TokenBudget:
    """Counts the tokens of a request's prompts while they are encoded. Each method raises ApiError (400)."""

    def __init__(self, settings: GatewaySettings, truncation: Truncation) -> None:
        self._settings = settings
        self._truncation = truncation
        self._left = settings.limits.max_prompt_tokens

    def count(self, num_tokens: int) -> None:
        """One more prompt."""
        num_tokens = min(num_tokens, self._truncation.keep)
        if num_tokens > self._settings.max_context:
            raise context_exceeded(num_tokens, None, self._settings.max_context)
        self._left -= num_tokens
        if self._left < 0:
            limit = self._settings.limits.max_prompt_tokens
            message = f"prompt: all prompts of a request may have {limit} tokens (limits.request.max_prompt_tokens)."
            raise invalid(message, "prompt")

    def take(self, token_ids: list[int]) -> None:
        """One more prompt, made of a text."""
        self.count(len(token_ids))
        if not token_ids:
            raise invalid("prompt: it holds no tokens; give at least one character or id.", "prompt")
        check_ids(token_ids, self._settings, "prompt")


async def encode_text(
    text: str,
    codec: TextCodec,
    settings: GatewaySettings,
    add_special_tokens: bool,
    param: str,
    split_special_tokens: bool = False,
) -> list[int]:
    """Token ids of a text. Raises ApiError (400) when it is too long, or the model has no tokenizer."""
    [token_ids] = await encode_texts(
        [text], codec, settings, add_special_tokens, param, split_special_tokens=split_special_tokens
    )
    return token_ids


async def encode_texts(
    texts: Sequence[str],
    codec: TextCodec,
    settings: GatewaySettings,
    add_special_tokens: bool,
    param: str,
    check: Callable[[list[int]], None] | None = None,
    split_special_tokens: bool = False,
) -> list[list[int]]:
    """Token ids of several texts; see `encode_text`. `check` sees those of each text, and may raise ApiError."""
    for text in texts:  # before any is encoded: that takes a hundred times the memory
        _check_size(text, settings, param)
    try:
        return await codec.encode_all(texts, add_special_tokens, check, split_special_tokens)
    except NoTokenizer as error:
        raise invalid(f"{error}.", param) from error


def _check_size(text: str, settings: GatewaySettings, param: str) -> None:
    limit = settings.limits.max_text_bytes
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        raise invalid(
            f"{param}: a text has {size} bytes, at most {limit} are allowed (limits.request.max_text_bytes).", param
        )


async def with_texts(prompts: Sequence[Prompt], codec: TextCodec, skip_special_tokens: bool) -> list[Prompt]:
    """The same prompts, those of ids with the text that they stand for (if the model has a tokenizer)."""
    if not codec.has_tokenizer or all(prompt.text is not None for prompt in prompts):
        return list(prompts)

    def add() -> list[Prompt]:
        texts = (prompt.text or codec.decode(prompt.token_ids, skip_special_tokens) for prompt in prompts)
        return [replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)]

    return await beside(add, sum(len(prompt.token_ids) for prompt in prompts))


def check_ids(token_ids: Sequence[int], settings: GatewaySettings, param: str) -> None:
    """Raises ApiError (400) for an id that the model's vocabulary does not have."""
    if settings.vocab_size is None or not token_ids:
        return
    largest = max(token_ids)
    if largest >= settings.vocab_size:
        raise invalid(
            f"{param}: token id {largest} is not in the vocabulary; ids go from 0 to {settings.vocab_size - 1}.", param
        )


async def encode_chat(
    body: ChatTemplateFields, codec: TextCodec, settings: GatewaySettings, truncation: Truncation = WHOLE
) -> Prompt:
    """The chat as the template writes it. Raises ApiError (400)."""
    num_parts = sum(len(each.content) for each in body.messages if isinstance(each.content, list))
    check_limit("messages", len(body.messages) + num_parts, settings.limits.max_messages)
    # What is in variables of the client's own, a template may go through for each message.
    grows = bool(body.chat_template_kwargs) or any(each.model_extra for each in body.messages)
    num_tokens = THREAD_FROM_TOKENS if grows else MESSAGE_TOKENS * (len(body.messages) + num_parts)
    if body.split_special_tokens:
        text, token_ids = await in_thread(lambda: _encode_split(body, codec, settings))
    else:
        text = await beside(lambda: render_chat(body, codec, settings.limits), num_tokens)
        token_ids = await encode_text(text, codec, settings, bool(body.add_special_tokens), "messages")
    check_ids(token_ids, settings, "messages")
    if not token_ids:
        raise invalid("messages: the chat template made an empty prompt of them.", "messages")
    return _cut(Prompt(token_ids, text), truncation)


def _encode_split(body: ChatTemplateFields, codec: TextCodec, settings: GatewaySettings) -> tuple[str, list[int]]:
    """The prompt's text and token ids, special tokens in messages written out. Raises ApiError (400)."""
    try:
        splitting = codec.splitting()
        marks = splitting.marks()
        marked = marks.take(render_chat(body, codec, settings.limits, marks))
    except ValueError as error:
        raise invalid(f"messages: {error}.", "messages") from error
    _check_size(marked.text, settings, "messages")
    return marked.text, splitting.encode_marked(marked, bool(body.add_special_tokens))


def render_chat(body: ChatTemplateFields, codec: TextCodec, limits: RequestLimits, marks: Marks | None = None) -> str:
    """The prompt's text; `marks` stand for special tokens in messages. Raises ApiError (400): also without template."""
    if codec.chat_template is None:
        what = "chat template: use /v1/completions, or add a chat_template.jinja to its directory and serve it again"
        if not codec.has_tokenizer:
            what = "tokenizer, and so no chats: send token ids to /v1/completions"
        raise invalid(f"This model has no {what}.", "messages", "no_chat_template")
    messages = [_plain_message(message, index) for index, message in enumerate(body.messages)]
    if marks is not None:
        messages = [marks.put_in(message) for message in messages]
    if not codec.chat_template.names_developer:  # it is the newer name of the same role
        messages = [message | {"role": ROLE_OF.get(message["role"], message["role"])} for message in messages]
    try:
        return codec.chat_template.render(
            messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            extra=body.chat_template_kwargs,
            max_chars=limits.max_text_bytes,  # a longer text would be refused for its bytes
        )
    except ChatTemplateError as error:
        raise invalid(f"messages: {short(str(error), MAX_TEMPLATE_CHARS)}.", "messages") from error


def _plain_message(message: ChatMessage, index: int) -> dict[str, Any]:
    where = f"messages.{index}"
    extra = message.model_extra or {}
    for key in REFUSED_MESSAGE_KEYS:
        if extra.get(key):
            raise invalid(f"{where}.{key} is not supported by this service.", f"{where}.{key}", "unsupported_parameter")
    if message.role not in ROLES:
        raise invalid(f"{where}.role: {shown(message.role)} is not one of {', '.join(ROLES)}.", f"{where}.role")
    return {**extra, "role": message.role, "content": _joined_text(message, where)}


def _joined_text(message: ChatMessage, where: str) -> str:
    if message.content is None:
        raise invalid(f"{where}.content: it is missing.", f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    return "".join(_part_text(part, f"{where}.content.{i}") for i, part in enumerate(message.content))


def _part_text(part: dict[str, Any], where: str) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind not in ("text", "input_text"):
        raise invalid(
            f"{where}: parts of type {shown(kind)} are not supported; this model reads text only.",
            where,
            "unsupported_parameter",
        )
    if not isinstance(text, str):
        raise invalid(f"{where}.text: it must be a string.", f"{where}.text")
    return text
