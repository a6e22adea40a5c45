"""What a request asks for and cannot have: fields that are not honoured or not known, and more than is allowed.

Nothing is ignored in silence: a field that Manta does not honour is refused, or has no effect and is in
`serving.fields` with the reason.
"""

from difflib import get_close_matches

from pydantic import BaseModel

from serving.errors import ApiError, invalid, shown
from serving.fields import NO_EFFECT, REFUSED
from serving.schemas import GenerationBody
from serving.settings import RequestLimits

MAX_NAME_CHARS = 64  # of a name that is shown, and compared with those that are known


def check_unsupported(body: BaseModel) -> None:
    """Raises ApiError (400) for a field that is not known, or that asks for what cannot be had."""
    for name, value in (body.model_extra or {}).items():
        refused = REFUSED.get(name)
        if refused is None:
            if name not in NO_EFFECT:
                raise _unknown(name, body)
        elif not _is_neutral(value, refused.neutral):
            message = f"{name} is not supported by this service; {refused.instead}."
            raise invalid(message, name, "unsupported_parameter")


def check_best_of(best_of: int | None, n: int) -> None:
    """Raises ApiError (400) unless best_of is absent or n: choosing the best of more is not supported."""
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
        given = f"{shown(task)} is none of them" if task else "it is missing"
        raise invalid(f"task: this model routes by task, and {given}; allowed: {', '.join(tasks)}.", "task")
    return task


def check_limit(name: str, given: int, limit: int) -> None:
    """Raises ApiError (400) when a request asks for more than `limit`."""
    if given > limit:
        raise invalid(f"{name}: {given} were asked for, at most {limit} are allowed.", name)


def check_lists(body: GenerationBody, limits: RequestLimits) -> None:
    """Raises ApiError (400) for more ids or words than allowed."""
    check_limit("stop_token_ids", len(body.stop_token_ids or ()), limits.max_stop_token_ids)
    check_limit("allowed_token_ids", len(body.allowed_token_ids or ()), limits.max_allowed_token_ids)
    check_limit("bad_words", len(body.bad_words or ()), limits.max_bad_words)


def check_stops(stops: list[str], limits: RequestLimits) -> None:
    """Raises ApiError (400) for more or longer stop strings than allowed."""
    check_limit("stop", len(stops), limits.max_stop_strings)
    longest = max(map(len, stops), default=0)
    if longest > limits.max_stop_string_chars:
        raise invalid(
            f"stop: one has {longest} characters, at most {limits.max_stop_string_chars} are allowed.", "stop"
        )


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    if value is None or value in ("", [], {}):
        return True
    truth = isinstance(value, bool)  # which Python takes for 0 and 1
    return any(value == each and truth == isinstance(each, bool) for each in neutral)


def _unknown(name: str, body: BaseModel) -> ApiError:
    shown = name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 3] + "..."
    close = get_close_matches(shown, [*type(body).model_fields, *REFUSED], n=1)
    hint = f"did you mean {close[0]}?" if close else "remove it from the request."
    return invalid(f"Unrecognized request argument: {shown!r}; {hint}", shown, "unknown_parameter")
