"""Log-probabilities in the shapes that OpenAI's and vLLM's clients parse, written as JSON in slices.

A token with 20 alternatives takes 20 us and 350 bytes, so that thousands of them (a scored prompt) are seconds and
megabytes: the event loop goes on after each slice, and the JSON stays in pieces until it is sent.
"""

import json
from collections.abc import Callable, Sequence

from protos.generation_pb2 import TokenLogprob
from serving.beside import Slices

TokenBytes = Callable[[int], bytes]
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot write
SLICE = 32  # tokens between two looks at the time
to_json = json.JSONEncoder(separators=(",", ":")).encode


def finite(logprob: float) -> float:
    """The value, or LOWEST for minus infinity (and for NaN)."""
    return logprob if logprob > LOWEST else LOWEST


class Names:
    """Tokens as JSON strings: an answer names the same few thousand over and over, and each is written once."""

    def __init__(self, token_bytes: TokenBytes, as_ids: bool = False) -> None:
        """`as_ids`: tokens are named by their ids; what is decoded of them stays what it is."""
        self._token_bytes = token_bytes
        self._as_ids = as_ids
        self._legacy: dict[int, str] = {}
        self._chat: dict[int, tuple[str, str]] = {}
        self._decoded: dict[int, str] = {}

    def legacy(self, token_id: int) -> str:
        """A token's text; bytes that are no text are spelled out, as OpenAI does: "bytes:\\xe4\\xb8"."""
        name = self._legacy.get(token_id)
        if name is None:
            name = self._as_id(token_id) if self._as_ids else to_json(_spelled(self._token_bytes(token_id)))
            self._legacy[token_id] = name
        return name

    def chat(self, token_id: int) -> tuple[str, str]:
        """A token's text, with U+FFFD for bytes that are no text, and its bytes as an array."""
        pair = self._chat.get(token_id)
        if pair is None:
            data = self._token_bytes(token_id)
            name = self._as_id(token_id) if self._as_ids else self.decoded(token_id)
            pair = self._chat[token_id] = name, to_json(list(data))
        return pair

    def decoded(self, token_id: int) -> str:
        """A token's text, with U+FFFD for bytes that are no text."""
        text = self._decoded.get(token_id)
        if text is None:
            text = self._decoded[token_id] = to_json(self._token_bytes(token_id).decode(errors="replace"))
        return text

    def _as_id(self, token_id: int) -> str:
        return f'"token_id:{token_id}"'


async def render_legacy_logprobs(
    names: Names,
    token_ids: Sequence[int],
    offsets: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
) -> list[str]:
    """`logprobs` of /v1/completions, in pieces: parallel lists.

    A None among `logprobs` (a prompt's first token) becomes null.
    """
    slices = Slices()
    columns: tuple[list[str], ...] = ([], [], [], [])
    for start in range(0, len(token_ids), SLICE):
        here = slice(start, start + SLICE)
        scores = logprobs[here]
        values = (
            map(str, offsets[here]),
            ("null" if each is None else repr(finite(each.logprob)) for each in scores),
            map(names.legacy, token_ids[here]),
            ("null" if each is None else _top(names, each) for each in scores),
        )
        for column, cells in zip(columns, values, strict=True):
            column.append(("," if start else "") + ",".join(cells))
        await slices.pause()
    offset_cells, logprob_cells, name_cells, top_cells = columns
    return [
        '{"text_offset":[',
        *offset_cells,
        '],"token_logprobs":[',
        *logprob_cells,
        '],"tokens":[',
        *name_cells,
        '],"top_logprobs":[',
        *top_cells,
        "]}",
    ]


def _top(names: Names, logprob: TokenLogprob) -> str:
    top: dict[str, float] = {}
    for token_id, value in zip(logprob.alternative_ids, logprob.alternative_logprobs, strict=True):
        top.setdefault(names.legacy(token_id), value)  # two ids may share a name: the better one keeps it
    top.setdefault(names.legacy(logprob.token_id), logprob.logprob)
    return f"{{{','.join([f'{name}:{finite(value)!r}' for name, value in top.items()])}}}"


def _spelled(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


async def render_chat_logprobs(names: Names, logprobs: Sequence[TokenLogprob]) -> list[str]:
    """`logprobs` of a chat's choice, in pieces: one object per token."""
    slices, pieces = Slices(), ['{"content":[']
    for start in range(0, len(logprobs), SLICE):
        tokens = ",".join([_chat_token(names, each) for each in logprobs[start : start + SLICE]])
        pieces.append(("," if start else "") + tokens)
        await slices.pause()
    return [*pieces, '],"refusal":null}']


def _chat_token(names: Names, logprob: TokenLogprob) -> str:
    pairs = zip(logprob.alternative_ids, logprob.alternative_logprobs, strict=True)
    top = ",".join([f"{_chat_fields(names, token_id, value)}}}" for token_id, value in pairs])
    return f'{_chat_fields(names, logprob.token_id, logprob.logprob)},"top_logprobs":[{top}]}}'


def _chat_fields(names: Names, token_id: int, logprob: float) -> str:
    token, data = names.chat(token_id)
    return f'{{"token":{token},"logprob":{finite(logprob)!r},"bytes":{data}'


async def render_prompt_logprobs(names: Names, logprobs: Sequence[TokenLogprob]) -> list[str]:
    """`prompt_logprobs`, in pieces, in vLLM's shape: by id, each token itself first; null for a prompt's first one."""
    slices, pieces = Slices(), ["[null"]
    for start in range(0, len(logprobs), SLICE):
        pieces.append("".join([_prompt_token(names, each) for each in logprobs[start : start + SLICE]]))
        await slices.pause()
    return [*pieces, "]"]


def _prompt_token(names: Names, logprob: TokenLogprob) -> str:
    entries = {logprob.token_id: (logprob.logprob, logprob.rank)}
    pairs = zip(logprob.alternative_ids, logprob.alternative_logprobs, strict=True)
    for rank, (token_id, value) in enumerate(pairs, start=1):
        entries.setdefault(token_id, (value, rank))
    fields = [
        f'"{token_id}":{{"logprob":{finite(value)!r},"rank":{rank},"decoded_token":{names.decoded(token_id)}}}'
        for token_id, (value, rank) in entries.items()
    ]
    return f",{{{','.join(fields)}}}"
