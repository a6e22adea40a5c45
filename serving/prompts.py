"""What the client wrote, as token ids: texts, ids, lists of either, or a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from serving.chat_template import ChatTemplateError
from serving.errors import invalid, shown
from serving.schemas import ChatMessage, ChatTemplateFields
from serving.settings import GatewaySettings
from serving.tokenizer import NoTokenizer, TextCodec

PROMPT_FORMS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"
REFUSED_MESSAGE_KEYS = ("tool_calls", "function_call", "audio", "tool_call_id")
ROLES = ("system", "developer", "user", "assistant")
ROLE_OF = {"developer": "system"}  # for templates that name but the older one


@dataclass(frozen=True)
class Prompt:
    """One prompt; `text` is what the client wrote, None where it sent ids."""

    token_ids: list[int]
    text: str | None = None


def split_prompts(prompt: object) -> list[str] | list[list[int]]:
    """The prompts of a completion request. Raises ApiError (400) naming `prompt` for any other form."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        items = cast("list[Any]", prompt)
        if all(isinstance(item, str) for item in items):
            return cast("list[str]", items)
        if _are_ids(items):
            return [cast("list[int]", items)]
        if all(isinstance(item, list) and item and _are_ids(item) for item in items):
            return cast("list[list[int]]", items)
    raise invalid(f"prompt: it must be {PROMPT_FORMS}, and not empty (given: {shown(prompt)}).", "prompt")


def _are_ids(items: list[Any]) -> bool:
    # `type(...) is int`: True and False are ints to isinstance.
    return all(type(item) is int and 0 <= item < (1 << 32) for item in items)


async def encode_prompts(
    prompts: Sequence[str] | Sequence[list[int]], codec: TextCodec, settings: GatewaySettings, add_special_tokens: bool
) -> list[Prompt]:
    """Token ids of every prompt. Raises ApiError (400)."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]  # all of them, or none
    if texts:
        token_ids = await encode_texts(texts, codec, add_special_tokens, "prompt")
        encoded = [Prompt(ids, text) for ids, text in zip(token_ids, texts, strict=True)]
    else:
        encoded = [Prompt(prompt) for prompt in prompts if not isinstance(prompt, str)]
    for prompt in encoded:
        check_ids(prompt.token_ids, settings, "prompt")
        if not prompt.token_ids:
            raise invalid("prompt: it holds no tokens; give at least one character or id.", "prompt")
    return encoded


async def encode_text(text: str, codec: TextCodec, add_special_tokens: bool, param: str) -> list[int]:
    """Token ids of a text. Raises ApiError (400) when the model has no tokenizer."""
    [token_ids] = await encode_texts([text], codec, add_special_tokens, param)
    return token_ids


async def encode_texts(texts: Sequence[str], codec: TextCodec, add_special_tokens: bool, param: str) -> list[list[int]]:
    """Token ids of several texts; see `encode_text`."""
    try:
        return await codec.encode_all(texts, add_special_tokens)
    except NoTokenizer as error:
        raise invalid(f"{error}.", param) from error


def check_ids(token_ids: Sequence[int], settings: GatewaySettings, param: str) -> None:
    """Raises ApiError (400) for an id that the model's vocabulary does not have."""
    if settings.vocab_size is None or not token_ids:
        return
    largest = max(token_ids)
    if largest >= settings.vocab_size:
        raise invalid(
            f"{param}: token id {largest} is not in the vocabulary; ids go from 0 to {settings.vocab_size - 1}.", param
        )


async def encode_chat(body: ChatTemplateFields, codec: TextCodec, settings: GatewaySettings) -> Prompt:
    """The chat as the template writes it. Raises ApiError (400)."""
    text = render_chat(body, codec)
    token_ids = await encode_text(text, codec, bool(body.add_special_tokens), "messages")
    check_ids(token_ids, settings, "messages")
    if not token_ids:
        raise invalid("messages: the chat template made an empty prompt of them.", "messages")
    return Prompt(token_ids, text)


def render_chat(body: ChatTemplateFields, codec: TextCodec) -> str:
    """The prompt's text. Raises ApiError (400), also where the model has no template."""
    if codec.chat_template is None:
        raise invalid(
            "This model has no chat template: use /v1/completions, or add a chat_template.jinja to its directory "
            "and serve it again.",
            "messages",
            "no_chat_template",
        )
    messages = [_plain_message(message, index) for index, message in enumerate(body.messages)]
    if not codec.chat_template.names_developer:  # it is the newer name of the same role
        messages = [message | {"role": ROLE_OF.get(message["role"], message["role"])} for message in messages]
    try:
        return codec.chat_template.render(
            messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            extra=body.chat_template_kwargs,
        )
    except ChatTemplateError as error:
        raise invalid(f"messages: {error}.", "messages") from error


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
