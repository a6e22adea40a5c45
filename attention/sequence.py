"""One sequence: what was asked, what has come out, how much of it is in the cache."""

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from protos.generation_pb2 import Sampling, TokenLogprob

NO_LANE = -1


@dataclass(eq=False, slots=True)
class Sequence:
    """The state of one sequence on its node.

    Args:
        key: Who asked: unique, chosen by the caller.
        ids: Prompt and output token ids, in order.
        num_prompt: How many of `ids` are the prompt.
        max_output: Outputs after which it ends.
        arrival_s: When it arrived, and `admitted_s` when it first got a lane (monotonic clock).
        stop_ids: Tokens that end it once it has `sampling.min_tokens` outputs.
        priority: Of those that wait, the ones with the lowest value are admitted first.
        task: The number of its task, where the model routes by task.
        num_cached: Tokens whose keys and values have been computed.
        announced: Whether its first message has been sent.
        missing_experts: Experts that steps of it were computed without; `missing_told`: whether a message has told all.
    """

    key: Hashable
    ids: list[int]
    num_prompt: int
    sampling: Sampling
    max_output: int
    arrival_s: float
    stop_ids: frozenset[int] = frozenset()
    task: int = 0
    priority: int = 0
    lane: int = NO_LANE
    num_cached: int = 0
    admitted_s: float | None = None
    cancelled: bool = False
    announced: bool = False
    missing_experts: frozenset[int] = frozenset()
    missing_told: bool = True
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def note_missing(self, experts: Collection[int]) -> None:
        """Notes that a step of it was computed without `experts`."""
        if not self.missing_experts.issuperset(experts):
            self.missing_experts = self.missing_experts.union(experts)
            self.missing_told = False

    @property
    def num_output(self) -> int:
        """Output tokens so far."""
        return len(self.ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the cache yet: one for a sequence that decodes."""
        return len(self.ids) - self.num_cached

    @property
    def output_ids(self) -> list[int]:
        return self.ids[self.num_prompt :]
