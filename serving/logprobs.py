"""Log-probabilities in the two shapes that OpenAI's clients parse."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from protos.generation_pb2 import TokenLogprob

TokenBytes = Callable[[int], bytes]
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot write


def finite(logprob: float) -> float:
    """The value, or LOWEST for minus infinity (and for NaN)."""
    return logprob if logprob > LOWEST else LOWEST


def render_legacy_logprobs(
    token_bytes: TokenBytes,
    token_ids: Sequence[int],
    offsets: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
) -> str:
    """`logprobs` of /v1/completions: parallel lists; a None among `logprobs` (a prompt's first token) becomes null."""
    value = {
        "text_offset": offsets,
        "token_logprobs": [None if each is None else finite(each.logprob) for each in logprobs],
        "tokens": [_name(token_bytes(token_id)) for token_id in token_ids],
        "top_logprobs": [None if each is None else _top(token_bytes, each) for each in logprobs],
    }
    return json.dumps(value, ensure_ascii=False)


def _top(token_bytes: TokenBytes, logprob: TokenLogprob) -> dict[str, float]:
    pairs = zip(logprob.alternative_ids, logprob.alternative_logprobs, strict=True)
    top: dict[str, float] = {}
    for token_id, value in pairs:  # two ids may share a name: the better one keeps it
        top.setdefault(_name(token_bytes(token_id)), finite(value))
    top.setdefault(_name(token_bytes(logprob.token_id)), finite(logprob.logprob))
    return top


def _name(data: bytes) -> str:
    """A token's text; bytes that are no text are spelled out, as OpenAI does: "bytes:\\xe4\\xb8"."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def render_chat_logprobs(token_bytes: TokenBytes, logprobs: Sequence[TokenLogprob], num_top: int) -> str:
    """`logprobs` of a chat's choice: one object per token."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}

    content: list[dict[str, Any]] = []
    for each in logprobs:
        pairs = list(zip(each.alternative_ids, each.alternative_logprobs, strict=True))[:num_top]
        top = [one(token_id, logprob) for token_id, logprob in pairs]
        content.append({**one(each.token_id, each.logprob), "top_logprobs": top})
    return json.dumps({"content": content, "refusal": None}, ensure_ascii=False)
