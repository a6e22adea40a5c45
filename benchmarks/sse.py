"""The little of server-sent events and of the completions stream that a load generator needs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

DONE = b"[DONE]"


@dataclass(slots=True)
class EventLines:
    """Cuts a byte stream into the payloads of its `data:` lines, whatever pieces the network made of it."""

    pending: bytes = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes; return the payloads they complete."""
        *lines, self.pending = (self.pending + piece).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


@dataclass(slots=True)
class StreamState:
    """What a completions stream has said so far. A chunk is an event that has choices.

    `token_ids` are there where the request asked for them (`return_token_ids`). `margins` are there where it asked for
    `logprobs`: by how much the best token of each position was better than the second.
    """

    num_chunks: int = 0
    empty_finish: bool = False
    usage_tokens: int | None = None
    done: bool = False
    error: str | None = None
    token_ids: list[int] = field(default_factory=list[int])
    margins: list[float] = field(default_factory=list[float])

    def take(self, payload: bytes) -> bool:
        """Read one event; True where it is a chunk, so that its time counts.

        An event that is no JSON object sets `error`, as does one in which the server reports an error.
        """
        if payload == DONE:
            self.done = True
            return False
        try:
            event = json.loads(payload)
            choices, usage, failure = event.get("choices"), event.get("usage"), event.get("error")
        except (ValueError, AttributeError):
            self.error = f"unreadable event: {payload[:80]!r}"
            return False
        if failure:
            self.error = f"error in the stream: {error_message(failure)}"
        if usage:
            self.usage_tokens = usage.get("completion_tokens")
        if not choices:
            return False
        self.num_chunks += 1
        choice = choices[0]
        self.empty_finish = bool(choice.get("finish_reason")) and not choice.get("text")
        self.token_ids += choice.get("token_ids") or ()
        if choice.get("logprobs"):
            self.margins += map(margin, choice["logprobs"]["top_logprobs"])
        return True

    @property
    def last_chunk_is_extra(self) -> bool:
        """Whether the last chunk only closed the stream: a finish reason without text, and one chunk too many.

        A last token may have no text either (half a character), so a server that reports usage is judged by the count.
        """
        return self.empty_finish and (self.usage_tokens is None or self.num_chunks > self.usage_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens produced: what the server's usage says, or else the number of chunks."""
        return self.num_chunks - self.last_chunk_is_extra if self.usage_tokens is None else self.usage_tokens


def margin(top_logprobs: Mapping[str, float]) -> float:
    """The best log-probability of one position less the second; infinite where only one is told."""
    best = sorted(top_logprobs.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else math.inf


def error_message(body: object) -> str:
    """The message inside an error in OpenAI's shape, or the whole of anything else, cut to 200 characters."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(message)[:200]
