"""Fields that clients know and Manta does not honour: refused by name, because ignoring them would be a lie."""

import logging
from collections.abc import Mapping

from pydantic import BaseModel

from serving.errors import ApiError, invalid
from serving.settings import RequestLimits

LOG = logging.getLogger(__name__)

# Field -> values that ask for nothing. None and empty values never ask for anything.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "suffix": (),
    "echo": (False,),  # of a chat; completions have it
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "allowed_token_ids": (),
    "bad_words": (),
    "logits_processors": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "priority": (0,),
    "kv_transfer_params": (),
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "documents": (),
    "chat_template": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "thinking_token_budget": (),
}
# These change nothing that a client could see here.
HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "cache_salt", "request_id", "session_id", "parallel_tool_calls", "spaces_between_special_tokens", "best_of",
        "mm_processor_kwargs", "return_token_strs",
    }
)  # fmt: skip
HINTS: Mapping[str, str] = {
    "prompt_logprobs": "use echo with logprobs on /v1/completions",
    "response_format": "only {'type': 'text'} is allowed",
    "chat_template": "the template of the model's checkpoint is used; chat_template_kwargs may set its variables",
    "truncate_prompt_tokens": "shorten the prompt; /tokenize counts its tokens",
}
_warned: set[str] = set()
MAX_WARNED = 1000  # a client that invents names must not fill the memory


def check_unsupported(body: BaseModel) -> None:
    """Raises ApiError (400) for a field that would change the answer and cannot be honoured."""
    extra = body.model_extra or {}
    for name, value in extra.items():
        if name in REFUSED:
            if not _is_neutral(value, REFUSED[name]):
                raise _refusal(name)
        elif name not in HARMLESS:
            _warn_once(name)


def check_best_of(body: BaseModel, n: int) -> None:
    """Raises ApiError (400) unless best_of is absent or n: choosing the best of more is not supported."""
    best_of = (body.model_extra or {}).get("best_of")
    if best_of is not None and best_of != n:
        raise invalid(f"best_of is {best_of!r}: only best_of equal to n ({n}) is supported.", "best_of")


def check_task(task: str | None, tasks: tuple[str, ...]) -> str:
    """The task to route by; empty where the model has no `tasks`. Raises ApiError (400) for what is none of them."""
    if not tasks:
        if task:
            message = "task: this service does not route by task; remove the field."
            raise invalid(message, "task", "unsupported_parameter")
        return ""
    if not task or task not in tasks:
        given = f"{task!r} is none of them" if task else "it is missing"
        raise invalid(f"task: this model routes by task, and {given}; allowed: {', '.join(tasks)}.", "task")
    return task


def check_limit(name: str, given: int, limit: int) -> None:
    """Raises ApiError (400) when a request asks for more than `limit`."""
    if given > limit:
        raise invalid(f"{name}: {given} were asked for, at most {limit} are allowed.", name)


def check_stops(stops: list[str], stop_token_ids: list[int] | None, limits: RequestLimits) -> None:
    """Raises ApiError (400) for more or longer stop strings than allowed."""
    check_limit("stop", len(stops), limits.max_stop_strings)
    check_limit("stop_token_ids", len(stop_token_ids or ()), limits.max_stop_token_ids)
    longest = max(map(len, stops), default=0)
    if longest > limits.max_stop_string_chars:
        raise invalid(
            f"stop: one has {longest} characters, at most {limits.max_stop_string_chars} are allowed.", "stop"
        )


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    return value is None or value in ("", [], {}) or any(value == each for each in neutral)


def _refusal(name: str) -> ApiError:
    hint = HINTS.get(name)
    return invalid(
        f"{name} is not supported by this service; {hint or 'remove it from the request'}.",
        name,
        "unsupported_parameter",
    )


def _warn_once(name: str) -> None:
    if name not in _warned and len(_warned) < MAX_WARNED:
        _warned.add(name)
        LOG.warning("ignoring a request field that this service does not know: %r", name[:80])
