"""Prompts that are cut to a length instead of being refused: `truncate_prompt_tokens` and `truncation_side`."""

import sys
from dataclasses import dataclass

from serving.schemas import GenerationBody


@dataclass(frozen=True)
class Truncation:
    """At most `keep` tokens of a prompt are kept: its last ones, or, from the `right`, its first ones."""

    keep: int
    right: bool = False

    def cut(self, token_ids: list[int]) -> list[int]:
        """What is kept of a prompt."""
        if len(token_ids) <= self.keep:
            return token_ids
        return token_ids[: self.keep] if self.right else token_ids[-self.keep :]


WHOLE = Truncation(sys.maxsize)


def truncation_of(body: GenerationBody, max_context: int) -> Truncation:
    """What a request asks for; -1 keeps what the output leaves of the context."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return WHOLE
    if keep == -1:
        keep = max_context - (1 if body.output_limit is None else body.output_limit)
    return Truncation(max(keep, 1), body.truncation_side == "right")
