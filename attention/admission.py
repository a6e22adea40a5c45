"""From a gateway's Submit to a Sequence: validation, limits, stop rules."""

from collections.abc import Hashable

from attention.sampling import SamplingError, validate_sampling
from attention.sequence import Sequence
from model.config import MixtralConfig
from model.routing import Routing
from protos.generation_pb2 import Sampling, Submit
from transport.errors import shortened


class SubmitError(ValueError):
    """A sequence that is not accepted; `code` as in protos/generation.proto, GenerationFailure."""

    def __init__(self, code: str, message: str) -> None:
        message = shortened(message)
        super().__init__(message)
        self.code = code
        self.message = message


def make_sequence(key: Hashable, submit: Submit, config: MixtralConfig, max_context: int, arrival_s: float) -> Sequence:
    """Returns the sequence that a Submit asks for.

    Raises:
        SubmitError: `invalid_request` or `context_length`; says what was given and what is allowed.
    """
    prompt, output, sampling = list(submit.prompt_ids), list(submit.output_ids), submit.sampling
    if not prompt:
        raise SubmitError("invalid_request", "the prompt is empty; at least one token is needed")
    largest = max(prompt + output)
    if largest >= config.vocab_size:
        raise SubmitError(
            "invalid_request", f"token {largest} is not in the vocabulary; allowed: 0 to {config.vocab_size - 1}"
        )
    task = _task_number(submit.task, config.routing)
    max_context = _allowed_context(submit, config, max_context)
    _check_length(len(prompt), len(output), sampling, max_context)
    try:
        validate_sampling(sampling, config.vocab_size, config.eos_token_ids)
    except SamplingError as error:
        raise SubmitError("invalid_request", str(error)) from error
    room = max_context - len(prompt)
    stop_ids = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_ids.update(config.eos_token_ids)
    return Sequence(
        key=key,
        ids=prompt + output,
        num_prompt=len(prompt),
        sampling=sampling,
        max_output=min(sampling.max_tokens, room) if sampling.HasField("max_tokens") else room,
        arrival_s=arrival_s,
        stop_ids=frozenset(stop_ids),
        task=task,
        priority=submit.priority,
    )


def _allowed_context(submit: Submit, config: MixtralConfig, max_context: int) -> int:
    """Returns the context that a sequence may fill.

    One that another node had accepted may have begun under a higher limit, which was lowered since. It keeps that, as
    long as the cache needs not be longer for it; its gateway has set how many tokens it gets.
    """
    rolls = config.window is not None and config.window <= max_context
    return config.max_context if submit.resumed and rolls else max_context


def _task_number(task: str, routing: Routing) -> int:
    if routing.level != "task":
        if task:
            raise SubmitError("invalid_request", f"task {task!r} was given, but the model routes by {routing.level}")
        return 0
    if task not in routing.tasks:
        given = f"task {task!r} is none of the model's" if task else "no task was given, and the model routes by task"
        raise SubmitError("invalid_request", f"{given}; allowed: {', '.join(routing.tasks)}")
    return routing.tasks.index(task)


def _check_length(num_prompt: int, num_output: int, sampling: Sampling, max_context: int) -> None:
    """A prompt that fills the context may only be scored; what it resumes with was generated here and thus fits."""
    only_scored = sampling.HasField("max_tokens") and sampling.max_tokens == 0
    if num_prompt + num_output > max_context or (num_prompt == max_context and not only_scored):
        given = f"the prompt has {num_prompt} tokens" + (f" and {num_output} outputs so far" if num_output else "")
        raise SubmitError("context_length", f"{given}; prompt and output together must fit {max_context}")
