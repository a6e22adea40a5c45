"""One output sequence: from a node's messages to the text, ids and log-probabilities that a client gets to see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from protos.generation_pb2 import LENGTH, STOP, SequenceOutput, TokenLogprob
from serving.detokenizer import Detokenizer
from serving.stopping import StopFinder, StopTable

MAX_PARTS = 64  # of a text; each takes 50 bytes more than it says
FinishName = Literal["stop", "length"]


@dataclass(slots=True)
class Delta:
    """What is new; of its token ids only if somebody asked for them.

    `stop_reason` is the stop string or stop token that ended it; None for end-of-sequence. `missing_experts` comes with
    the end: all that any part of the choice was computed without, ascending.
    """

    parts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finish_reason: FinishName | None = None
    stop_reason: str | int | None = None
    missing_experts: Sequence[int] = ()

    def add_text(self, text: str) -> None:
        """Adds a part; many become one, as each takes more memory than what it says."""
        self.parts.append(text)
        if len(self.parts) >= MAX_PARTS:
            self.parts = [self.text]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class TextRules:
    """What of the text is shown, and what ends it. `stops`: of the stop strings, obeyed after `min_tokens` tokens.

    `keeps_ids`: whether deltas hold token ids.
    """

    stops: StopTable | None = None
    include_stop: bool = False
    min_tokens: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    keeps_ids: bool = True


class Choice:
    """Detokenizes, applies stop strings and counts tokens. Pure: fed with messages, knows no time and no socket."""

    __slots__ = ("_detokenizer", "_finder", "_rules", "finish_reason", "index", "missing_experts", "num_tokens")

    def __init__(self, index: int, detokenizer: Detokenizer, rules: TextRules) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishName | None = None
        self.missing_experts: set[int] = set()
        self._detokenizer = detokenizer
        self._rules = rules
        self._finder = StopFinder(rules.stops, rules.include_stop) if rules.stops is not None else None

    def push(self, output: SequenceOutput, delta: Delta) -> None:
        """Adds a message to `delta`, so that several waiting messages become one. Nothing may follow the end."""
        token_ids = list(output.token_ids)
        if output.prompt_logprobs:
            delta.prompt_logprobs.extend(output.prompt_logprobs)
        if output.missing_experts:  # from each node that it has been at
            self.missing_experts.update(output.missing_experts)
        num_shown = len(token_ids)
        if output.finish_reason == STOP and output.HasField("stop_token_id") and not self._rules.include_stop:
            num_shown -= 1
        num_used = self._add_text(token_ids[:num_shown], delta)
        if self.finish_reason is None:
            num_used = len(token_ids)
            self._end(output, delta)
        self.num_tokens += num_used
        if self._rules.keeps_ids:
            delta.token_ids.extend(token_ids[:num_used])
        if output.logprobs:
            delta.logprobs.extend(output.logprobs[:num_used])
        if self.missing_experts and self.finish_reason is not None:
            delta.missing_experts = sorted(self.missing_experts)

    def _add_text(self, token_ids: Sequence[int], delta: Delta) -> int:
        """Adds the text of the tokens; the number of them that were used (fewer after a stop string)."""
        if self._finder is None:
            delta.add_text(self._detokenizer.push(token_ids))
            return len(token_ids)
        for num_used, token_id in enumerate(token_ids, start=1):
            text = self._detokenizer.push((token_id,))
            if self.num_tokens + num_used <= self._rules.min_tokens:
                delta.add_text(text)
            elif self._find_stop(self._finder, text, delta):
                return num_used
        return len(token_ids)

    def _find_stop(self, finder: StopFinder, text: str, delta: Delta) -> bool:
        stopped = finder.push(text)
        delta.add_text(stopped.text)
        if stopped.stop is None:
            return False
        self.finish_reason = delta.finish_reason = "stop"
        delta.stop_reason = stopped.stop
        return True

    def _end(self, output: SequenceOutput, delta: Delta) -> None:
        """What the node's own end adds: a character or a possible stop string that was waiting for more."""
        if output.finish_reason not in (STOP, LENGTH):
            return
        rest = self._detokenizer.finish()
        if self._finder is None:
            delta.add_text(rest)
        elif self._find_stop(self._finder, rest, delta):
            return
        else:
            delta.add_text(self._finder.finish())
        self.finish_reason = delta.finish_reason = "stop" if output.finish_reason == STOP else "length"
        if output.HasField("stop_token_id") and output.stop_token_id not in self._rules.eos_token_ids:
            delta.stop_reason = output.stop_token_id
