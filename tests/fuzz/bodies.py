"""Bodies that cost as much as they can for their size: each field in turn is filled, in each of many ways."""

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from serving.settings import RequestLimits
from tests.fuzz.extremes import BASES, USER

Named = tuple[str, str, bytes]  # what it is, a path, the body


def big_bodies(limits: RequestLimits, max_context: int) -> Iterator[Named]:
    """Every one of them; none is longer than the limit of a body."""
    size = limits.max_body_bytes
    for path, (body, base) in BASES.items():
        fields = [*body.model_json_schema()["properties"], "an_unknown_field"]
        for field, (shape, text) in itertools.product(fields, _fillings(size - 256).items()):
            others = {name: value for name, value in base.items() if name != field}
            yield f"{field}: {shape}", path, _with(others, field, text)
    for path in BASES:
        yield from ((name, path, text) for name, text in _wholes(size).items())
    yield from _dear(limits, max_context)


def _with(others: Mapping[str, Any], field: str, text: str) -> bytes:
    """A body with one field's value as it is written in `text`."""
    return (json.dumps(others)[:-1] + (", " if others else "") + f"{json.dumps(field)}: {text}}}").encode()


def _fillings(size: int) -> dict[str, str]:
    """JSON values of about so many bytes."""

    def many(one: str, size: int = size) -> str:
        return "[" + ",".join([one] * ((size - 2) // (len(one) + 1))) + "]"

    def keys(value: str) -> str:
        width = len(f'"0000000":{value},')
        return "{" + ",".join(f'"{number}":{value}' for number in range(1_000_000, 1_000_000 + size // width)) + "}"

    letters, part = random.Random(7), '{"type":"text","text":"a"}'
    return {
        "ones": many("1"),
        "empty texts": many('""'),
        "texts": many('"a"'),
        "nulls": many("null"),
        "empty objects": many("{}"),
        "empty lists": many("[]"),
        "lists of one": many("[5]"),
        "messages": many('{"role":"user","content":"a"}'),
        "parts": many('{"role":"user","content":[{"type":"text","text":"a"}]}'),
        "one message of many parts": '[{"role":"user","content":' + many(part, size - 40) + "}]",
        "numbers": many("1e308"),
        "keys": keys("1"),
        "keys of lists": keys("[]"),
        "a text": '"' + "a" * (size - 2) + '"',
        "a text of spaces": '"' + " " * (size - 2) + '"',
        "a text of all letters": '"' + "".join(letters.choices("abcdefghijklmnopqrstuvwxyz .,", k=size - 2)) + '"',
        "a text of wide characters": '"' + "😀" * ((size - 2) // 4) + '"',
        "a text of escapes": '"' + "\\u00e9" * ((size - 2) // 6) + '"',
        "a text of special tokens": '"' + "<s>" * ((size - 2) // 3) + '"',
        "a number": "1" * (size - 2),
        "nested lists": "[" * (size // 2) + "]" * (size // 2),
        "nested objects": '{"a":' * (size // 6) + "1" + "}" * (size // 6),
    }


def _wholes(size: int) -> dict[str, bytes]:
    """Bodies that are no object of known fields at all."""
    names = ",".join(f'"f{number}":1' for number in range(size // 14))
    return {
        "unknown fields": ("{" + names + "}").encode(),
        "one field of a long name": ('{"' + "n" * (size - 8) + '":1}').encode(),
        "one field given again and again": ('{"model":null' + ',"model":null' * (size // 14) + "}").encode(),
        "spaces": b" " * (size - 2) + b"{}",
        "no JSON": bytes(random.Random(7).choices(range(256), k=size)),
        "an unfinished text": b'{"prompt": "' + b"a" * (size - 16),
    }


def _dear(limits: RequestLimits, max_context: int) -> Iterator[Named]:
    """Small bodies, all of whose fields are allowed, that ask for as much as they may."""
    rng = random.Random(7)
    stops = ["".join(rng.choices("ab", k=limits.max_stop_string_chars)) for _ in range(limits.max_stop_strings)]
    bias = {str(token_id): 1.5 for token_id in range(limits.max_logit_bias)}
    words = ["".join(rng.choices("abcdefgh", k=16)) for _ in range(limits.max_bad_words)]
    each = max(1, limits.max_sequences // limits.max_n)
    many = {"n": limits.max_n, "max_tokens": 16, "ignore_eos": True}
    full = [5] * (max_context - 1)
    odd = [rng.randrange(2, 256) for _ in range(max_context - 1)]  # no token that a model would expect
    scored = limits.max_scored_tokens // (max_context - 1)
    cases: dict[str, dict[str, Any]] = {
        "sequences": {"prompt": ["ab"] * each, **many},
        "sequences with stops": {"prompt": ["ab"] * each, **many, "stop": stops},
        "sequences with biases": {"prompt": ["ab"] * each, **many, "logit_bias": bias},
        "sequences with bad words": {"prompt": ["ab"] * each, **many, "bad_words": words},
        "sequences with logprobs": {"prompt": ["ab"] * each, **many, "logprobs": limits.max_logprobs},
        "streamed sequences": {"prompt": ["ab"] * each, **many, "stream": True, "logprobs": limits.max_logprobs},
        "prompts": {"prompt": ["ab"] * limits.max_prompts, "max_tokens": 1},
        "echoed prompts": {"prompt": [full] * scored, "max_tokens": 1, "echo": True, "logprobs": limits.max_logprobs},
        "odd prompts, scored twice": {
            "prompt": [odd[: limits.max_scored_tokens // 2]] * max(1, scored // 2),
            "max_tokens": 1,
            "echo": True,
            "logprobs": limits.max_logprobs,
            "prompt_logprobs": limits.max_logprobs,
        },
        "flat draws": {"prompt": "ab", **many, "temperature": 1e6, "top_p": 0.999, "min_p": 1e-9},
        "long echoed prompts of many": {"prompt": [full] * each, **many, "max_tokens": 1, "echo": True},
        "one long answer": {"prompt": "ab", "max_tokens": max_context - 8, "ignore_eos": True, "stream": True},
    }
    for name, body in cases.items():
        yield name, "/v1/completions", json.dumps(body).encode()
    long = {"role": "user", "content": "a " * (limits.max_text_bytes // (2 * limits.max_messages))}
    chats: dict[str, dict[str, Any]] = {
        "chat choices": {"messages": [USER], **many, "logprobs": True, "top_logprobs": limits.max_logprobs},
        "messages at their limit": {"messages": [long] * limits.max_messages, "max_tokens": 1},
    }
    for name, body in chats.items():
        yield name, "/v1/chat/completions", json.dumps(body).encode()
    yield "a text at its limit", "/tokenize", json.dumps({"prompt": "ab " * (limits.max_text_bytes // 3)}).encode()
    yield "ids at their limit", "/detokenize", json.dumps({"tokens": [5] * (limits.max_body_bytes // 4)}).encode()
