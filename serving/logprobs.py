"""Log-probabilities in the two shapes that OpenAI's clients parse."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from protos.generation_pb2 import TokenLogprob

TokenBytes = Callable[[int], bytes]
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot write


def finite(logprob: float) -> float:
    """The value, or LOWEST for minus infinity (and for NaN)."""
    return logprob if logprob > LOWEST else LOWEST


class LegacyLogprobs:
    """`logprobs` of /v1/completions: parallel lists. Knows where in the text the next token begins."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._offset = 0

    def render(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> str:
        """JSON of the tokens; a None among `logprobs` (a prompt's first token) becomes null."""
        tokens = [self._name(token_id) for token_id in token_ids]
        value = {
            "text_offset": self._offsets(token_ids),
            "token_logprobs": [None if each is None else finite(each.logprob) for each in logprobs],
            "tokens": tokens,
            "top_logprobs": [None if each is None else self._top(each) for each in logprobs],
        }
        return json.dumps(value, ensure_ascii=False)

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        pairs = zip(logprob.alternative_ids, logprob.alternative_logprobs, strict=True)
        top: dict[str, float] = {}
        for token_id, value in pairs:  # two ids may share a name: the better one keeps it
            top.setdefault(self._name(token_id), finite(value))
        top.setdefault(self._name(logprob.token_id), finite(logprob.logprob))
        return top

    def _offsets(self, token_ids: Iterable[int]) -> list[int]:
        offsets: list[int] = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._token_bytes(token_id).decode(errors="ignore"))
        return offsets

    def _name(self, token_id: int) -> str:
        """The token's text; bytes that are no text are spelled out, as OpenAI does: "bytes:\\xe4\\xb8"."""
        data = self._token_bytes(token_id)
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
