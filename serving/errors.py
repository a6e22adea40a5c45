"""Errors as clients see them: OpenAI's shape, a status that says who must act.

ApiError
├── invalid()           400 the request is wrong; `param` names the field
├── unauthorized()      401 no key, or a wrong one
├── forbidden()         403 without keys: a request that is not for this machine, or from a page of a stranger
├── not_found()         404 unknown model or path
├── request_timeout()   408 the body did not arrive in time
├── too_large()         413 the body exceeds the limit
├── too_many_bodies()   429 this one is the largest of too many that arrive together
├── unsupported_media_type()  415 without keys: the body is not said to be JSON
├── unsupported_encoding()    415 the body is compressed
└── from_generation()   400, 429, 500 or 503: what the nodes said; 504 when they took too long
"""

import json
import math
import reprlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from serving.generator import GenerationError

MAX_SHOWN_CHARS = 80  # of what a client has sent, in any message
# Nothing that is known to the HTTP layer alone (timeouts, bad bodies) has a generation code.
STATUS_OF_GENERATION_CODE: Mapping[str, int] = {
    "queue_full": 429,
    "context_length": 400,
    "expert_unavailable": 503,
    "invalid_request": 400,
    "internal": 500,
}
TYPE_OF_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with `status` and one `{"error": {message, type, param, code}}` object."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        """OpenAI's `type`: the family of the error."""
        fallback = "invalid_request_error" if self.status < 500 else "server_error"
        return TYPE_OF_STATUS.get(self.status, fallback)

    def body(self) -> str:
        """The JSON object that a response or an SSE event carries."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False)

    def response(self) -> Response:
        """The whole HTTP response, with Retry-After (whole seconds, rounded up) where trying again helps."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.body(), self.status, headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the client must change the request."""
    return ApiError(400, message, code=code, param=param)


def unauthorized(message: str) -> ApiError:
    """401: a key is needed."""
    return ApiError(401, message, code="invalid_api_key")


def forbidden(message: str) -> ApiError:
    """403: not from there."""
    return ApiError(403, message, code="host_not_allowed")


def unsupported_media_type(given: str) -> ApiError:
    """415: bodies are JSON."""
    message = f"Content-Type {short(given)!r} was given: send JSON, with `Content-Type: application/json`."
    return ApiError(415, message, code="unsupported_media_type")


def unsupported_encoding(given: str) -> ApiError:
    """415: bodies are sent as they are."""
    message = f"Content-Encoding {short(given)!r} was given: send the body as it is, without compressing it."
    return ApiError(415, message, code="unsupported_media_type")


def unknown_model(given: str, served: str) -> ApiError:
    """404: one gateway serves one model."""
    return ApiError(
        404,
        f"The model {shown(given)} does not exist; this service serves '{served}'.",
        code="model_not_found",
        param="model",
    )


def context_exceeded(num_prompt: int, asked: int | None, max_context: int) -> ApiError:
    """400: prompt and output do not fit the context; `asked`: the most tokens of output, where the client said."""
    wish = "at least 1 token of output" if asked is None else f"max_tokens = {asked}"
    return invalid(
        f"This model's maximum context length is {max_context} tokens; the prompt has {num_prompt} tokens and the "
        f"request asks for {wish}, which is {num_prompt + (1 if asked is None else asked)} in all. Shorten the "
        "prompt or lower max_tokens.",
        "max_tokens" if num_prompt < max_context else "prompt",
        "context_length_exceeded",
    )


def too_large(limit_bytes: int) -> ApiError:
    """413: the body is refused before it is read whole."""
    message = f"The request body exceeds the limit of {limit_bytes} bytes (limits.request.max_body_bytes)."
    return ApiError(413, message, code="request_too_large")


def too_many_bodies(limit_bytes: int, retry_after_s: float) -> ApiError:
    """429: of the bodies that arrive together the largest has to wait."""
    message = (
        f"The bodies that arrive at this gateway together exceed {limit_bytes} bytes "
        "(limits.request.max_bodies_bytes), and this is the largest of them: send it again later."
    )
    return ApiError(429, message, code="overloaded", retry_after_s=retry_after_s)


def body_timeout(limit_s: float) -> ApiError:
    """408: the client stopped sending."""
    message = f"The request body did not arrive within {limit_s:g} s (limits.request.body_timeout_s)."
    return ApiError(408, message, code="request_timeout")


def generation_timeout(limit_s: float) -> ApiError:
    """504: the service was too slow."""
    return ApiError(504, f"The request was not finished within {limit_s:g} s and was cancelled.", code="timeout")


def from_generation(error: GenerationError, retry_after_s: float) -> ApiError:
    """What a node said, with the status that tells the client what to do about it."""
    code = "context_length_exceeded" if error.code == "context_length" else error.code
    status = STATUS_OF_GENERATION_CODE[error.code]
    return ApiError(status, error.message, code=code, retry_after_s=retry_after_s if status in (429, 503) else None)


def from_validation(error: ValidationError) -> ApiError:
    """The first of pydantic's findings as one sentence: which field, what is wrong, what was given."""
    findings = error.errors(include_url=False)
    first = findings[0]
    param = short(".".join(short(str(part), MAX_SHOWN_CHARS // 2) for part in first["loc"])) or None
    if first["type"] == "json_invalid":
        return invalid(f"The request body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.", None)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    sentence = f"{param}: {message}" if param else message
    if first["type"] not in ("missing", "value_error", "too_many"):
        sentence += f" (given: {shown(first['input'])})"
    if len(findings) > 1:
        sentence += f"; {len(findings) - 1} more problem(s) in this request"
    return invalid(sentence + ".", param)


def shown(value: object) -> str:
    """A short picture of what was given, safe to put into a message; it costs little however large the value is."""
    return short(_Picture().repr(value))


class _Picture(reprlib.Repr):
    """A representation that looks at the beginning of what it represents only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxdict = 12
        self.maxstring = self.maxlong = self.maxother = MAX_SHOWN_CHARS

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Unlike the library's, without sorting all of the keys before the first few are picked."""
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)


def short(text: str, limit: int = MAX_SHOWN_CHARS) -> str:
    """At most `limit` characters of a text; for names, which need no quotes."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
