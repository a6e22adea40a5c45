"""From a gateway's Submit to a Sequence: validation, limits, stop rules."""

from collections.abc import Hashable

from attention.sampling import SamplingError, validate_sampling
from attention.sequence import Sequence
from model.config import MixtralConfig
from protos.generation_pb2 import Submit


class SubmitError(ValueError):
    """A sequence that is not accepted; `code` as in protos/generation.proto, GenerationFailure."""

    def __init__(self, code: str, message: str) -> None:
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
    if max(prompt) >= config.vocab_size:
        raise SubmitError(
            "invalid_request", f"prompt token {max(prompt)} is not in the vocabulary; allowed: 0 to {config.vocab_size - 1}"
        )
    if submit.task:
        raise SubmitError("invalid_request", f"task {submit.task!r} was given, but the service routes by token")
    if len(prompt) > max_context or (len(prompt) == max_context and sampling.max_tokens != 0):
        raise SubmitError(
            "context_length", f"the prompt has {len(prompt)} tokens; with its output it must fit {max_context}"
        )
    try:
        validate_sampling(sampling, config.vocab_size)
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
    )
