"""Drives a `LocalModel` with sequences that join at different steps, and collects what each of them got."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from manta.local import LocalModel
from protos.generation_pb2 import Sampling, Submit, TokenLogprob

MAX_STEPS = 5000


@dataclass
class Wish:
    """One sequence: submitted before step `joins_at`; `output` is what it resumes with, `task` its task, if any."""

    prompt: list[int]
    sampling: Sampling
    joins_at: int = 0
    output: list[int] = field(default_factory=list)
    task: str = ""


@dataclass
class Outcome:
    """What one sequence got."""

    tokens: list[int] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    prompt_scores: list[TokenLogprob] = field(default_factory=list)
    finish_reason: int = 0
    ended_at: int = -1


def run(model: LocalModel, wishes: Sequence[Wish]) -> list[Outcome]:
    """Runs every wish to its end, checking the engine's integrity before and after."""
    outcomes: dict[int, Outcome] = {}
    keys: list[int | None] = [None] * len(wishes)
    for step in range(MAX_STEPS):
        for index, wish in enumerate(wishes):
            if keys[index] is None and wish.joins_at <= step:
                keys[index] = _submit(model, wish)
                outcomes[keys[index]] = Outcome()
        for key, output in model.step():
            outcome = outcomes[key]
            outcome.tokens.extend(output.token_ids)
            outcome.scores.extend(output.logprobs)
            outcome.prompt_scores.extend(output.prompt_logprobs)
            if output.finish_reason:
                assert not outcome.finish_reason, "a sequence ended twice"
                outcome.finish_reason, outcome.ended_at = output.finish_reason, step
        if None not in keys and not model.engine.has_work:
            model.engine.check_integrity()
            return [outcomes[key] for key in keys if key is not None]
    raise AssertionError(f"not every sequence has ended after {MAX_STEPS} steps")


def _submit(model: LocalModel, wish: Wish) -> int:
    wanted = Submit(prompt_ids=wish.prompt, output_ids=wish.output, sampling=wish.sampling, task=wish.task)
    return model.submit(wanted)
