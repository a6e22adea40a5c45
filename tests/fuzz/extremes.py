"""The values at the limits of a request's fields, from its JSON schema: within, just beyond, and of other types."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from serving.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serving.settings import RequestLimits

Schema = Mapping[str, Any]

USER = {"role": "user", "content": "ab"}
BASES: Mapping[str, tuple[type[Any], dict[str, Any]]] = {
    "/v1/completions": (CompletionBody, {"prompt": "ab", "max_tokens": 2}),
    "/v1/chat/completions": (ChatBody, {"messages": [USER], "max_tokens": 2}),
    "/tokenize": (TokenizeBody, {"prompt": "ab"}),
    "/detokenize": (DetokenizeBody, {"tokens": [5]}),
}
"""Path -> the body's type, and the smallest one that is answered."""

# What the schema does not know: limits from the settings, and fields of any type.
PROMPTS: tuple[Any, ...] = (
    "", "a", [], [""], [5], [-1], [1 << 32], [[]], [[5], [6]], ["a", [5]], [["a"]], "\ud800", "\x00", "a" * 4096, 5, {},
)  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    [{"role": "", "content": None}], [{"role": "tool", "content": "a"}], [USER, {"role": "assistant", "content": "c"}],
    [{"role": "user", "content": []}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}], [{}], [5],
)  # fmt: skip


def extremes(path: str, limits: RequestLimits, vocab_size: int) -> dict[str, list[Any]]:
    """Each field of a path's body, with its values, no two the same."""
    body, _ = BASES[path]
    schema = body.model_json_schema()
    found = {name: [*_values(part, schema.get("$defs", {}))]
             for name, part in schema["properties"].items()}  # fmt: skip
    for name, values in _limited(limits, vocab_size).items():
        if name in found:
            found[name] += values
    return {name: list({repr(value): value for value in values}.values()) for name, values in found.items()}


def allowed(path: str, values: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Those that the body's type takes: what it refuses never meets another field."""
    body, base = BASES[path]

    def takes(name: str, value: Any) -> bool:
        try:
            body.model_validate_json(json.dumps({**base, name: value}))
        except ValidationError as error:
            return any("stream" in found["msg"] or "logprobs" in found["msg"] for found in error.errors())
        return True

    return {name: [value for value in each if takes(name, value)] for name, each in values.items()}


def _limited(limits: RequestLimits, vocab_size: int) -> dict[str, list[Any]]:
    chars = limits.max_stop_string_chars
    return {
        "prompt": [*PROMPTS, [vocab_size - 1], [vocab_size], *_long(["a"], limits.max_prompts)],
        "messages": list(MESSAGES),
        "n": [limits.max_n, limits.max_n + 1],
        "stop": ["a" * chars, "a" * (chars + 1), *_long(["a"], limits.max_stop_strings)],
        "stop_token_ids": _long([vocab_size - 1], limits.max_stop_token_ids),
        "logit_bias": [
            {str(token_id): sign * 100 for token_id in range(count)}
            for count in (limits.max_logit_bias, limits.max_logit_bias + 1)
            for sign in (1, -1)
        ],
        "logprobs": [limits.max_logprobs, limits.max_logprobs + 1],
        "top_logprobs": [limits.max_logprobs, limits.max_logprobs + 1],
        "prompt_logprobs": [limits.max_logprobs, limits.max_logprobs + 1],
        "logprob_token_ids": _long([vocab_size - 1], limits.max_logprobs),
        "allowed_token_ids": [[vocab_size], *_long([vocab_size - 1], limits.max_allowed_token_ids)],
        "bad_words": [["a" * 256], ["a" * 257], [" "], *_long(["a"], limits.max_bad_words)],
        "tokens": [[vocab_size - 1], [vocab_size], [0] * 4096],
    }  # fmt: skip


def _long(one: list[Any], limit: int) -> list[Any]:
    """As many as allowed, and one more."""
    return [one * limit, one * (limit + 1)]


def _values(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Any]:
    """Values at the limits of one schema, and what is of no type that it allows."""
    yield from (None, "x", 1.5, [], {})
    for part in schema.get("anyOf", [schema]):
        part = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        yield from part.get("enum", ())
        yield from _KINDS.get(part.get("type", ""), lambda *_: ())(part, definitions)


def _numbers(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Any]:
    del definitions
    whole = schema["type"] == "integer"
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    yield from (0, 1, -1, 1 << 63, 1 << 64) if whole else (0.0, 0.5, 5e-324, 1e-38, 1e38, 1e308, -1e308)
    for limit in (lowest, highest, schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")):
        if limit is not None:
            ways = (-math.inf, math.inf)
            beside = (limit - 1, limit + 1) if whole else [math.nextafter(limit, way) for way in ways]
            yield from (limit, *beside)


def _texts(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Any]:
    del schema, definitions
    yield from ("", "a", "é" * 300, "\x00", "\ud800", "a\nb")


def _lists(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Any]:
    for value in _values(schema.get("items", {}), definitions):
        yield [value]


def _objects(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[Any]:
    for name, part in schema.get("properties", {}).items():
        for value in _values(part, definitions):
            yield {name: value}
    inner = schema.get("additionalProperties")
    if isinstance(inner, Mapping):
        for value in _values(inner, definitions):
            yield {"5": value}
        yield from ({"": 1}, {"-1": 1}, {"x": 1}, {str(1 << 32): 1})
    yield {"unknown": 1}


_KINDS: Mapping[str, Any] = {
    "integer": _numbers,
    "number": _numbers,
    "boolean": lambda *_: (True, False),
    "string": _texts,
    "array": _lists,
    "object": _objects,
}
