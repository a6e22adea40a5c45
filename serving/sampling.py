"""A request's wishes as the messages that attention nodes understand."""

import hashlib
import secrets
from collections.abc import Sequence
from typing import overload

from protos.generation_pb2 import Sampling, Submit
from serving.bad_words import BadWordIds
from serving.costs import too_many_held
from serving.errors import context_exceeded, invalid
from serving.prompts import Prompt, check_ids
from serving.schemas import GenerationBody
from serving.scores import Scores
from serving.settings import GatewaySettings

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
DEFAULT_TEMPERATURE = 1.0
LEAST_TOP_P = 2.0**-126  # a smaller one, which means the best token too, may be 0 as float32


def resolve_max_tokens(
    num_prompt: int, asked: int | None, default: int | None, most: int, settings: GatewaySettings
) -> int:
    """How many tokens one prompt's outputs may have at most.

    A client's own number must fit into the context together with the prompt, and into what an answer may hold (`most`);
    the default is cut to fit. Raises ApiError (400) that states the limit, the prompt's length and max_tokens.
    """
    room = settings.max_context - num_prompt
    if room < (1 if asked is None else asked):
        raise context_exceeded(num_prompt, asked, settings.max_context)
    if most < (1 if asked is None else asked):
        raise too_many_held(asked, most)
    if asked is not None:
        return asked
    return min(room, most) if default is None else min(default, room, most)


def build_sampling(
    body: GenerationBody,
    max_tokens: int,
    settings: GatewaySettings,
    scores: Scores,
    bad_words: BadWordIds,
) -> Sampling:
    """Everything but the seed.

    Raises ApiError (400) for ids beyond the vocabulary and impossible minimums.
    """
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(f"min_tokens ({min_tokens}) exceeds max_tokens ({max_tokens}).", "min_tokens")
    check_ids(list(body.logit_bias or {}), settings, "logit_bias")
    check_ids(body.stop_token_ids or [], settings, "stop_token_ids")
    check_ids(body.allowed_token_ids or [], settings, "allowed_token_ids")
    check_ids(scores.listed, settings, "logprob_token_ids")
    temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=None if body.top_p is None else max(body.top_p, LEAST_TOP_P),
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=bool(body.ignore_eos),
        allowed_token_ids=sorted(set(body.allowed_token_ids or ())),
        bad_word_ids=bad_words.token_ids,
        num_ids_per_bad_word=bad_words.lengths,
        logprobs=scores.outputs,
        logprob_token_ids=scores.listed,
        prompt_logprobs=scores.prompts is not None,
        prompt_alternatives=scores.prompts,
    )


class Submits(Sequence[Submit]):
    """The n sequences of each prompt, prompt by prompt: made when they are asked for, as only some are open at a time.

    The first sequence of a prompt draws from `seed` itself (None: from one of its own), each further one from another.
    With `num_scoring`, only so many of each prompt's sequences score it, where that was asked for.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        samplings: Sequence[Sampling],
        n: int,
        seed: int | None,
        task: str = "",
        priority: int = 0,
        num_scoring: int | None = None,
    ) -> None:
        self._of_prompt = [
            Submit(prompt_ids=prompt.token_ids, sampling=sampling, task=task, priority=priority)
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]
        self._seeds = [secrets.randbits(63) if seed is None else seed % (1 << 64) for _ in prompts]
        self._n = n
        self._num_scoring = n if num_scoring is None else num_scoring

    def __len__(self) -> int:
        return len(self._of_prompt) * self._n

    @overload
    def __getitem__(self, index: int) -> Submit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Submit]: ...

    def __getitem__(self, index: int | slice) -> Submit | list[Submit]:
        """Returns a fresh message, or several."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        prompt, choice = divmod(range(len(self))[index], self._n)
        submit = Submit()
        submit.CopyFrom(self._of_prompt[prompt])  # many times as fast as making it of Python's numbers again
        submit.sampling.seed = choice_seed(self._seeds[prompt], choice)
        if choice >= self._num_scoring:
            submit.sampling.prompt_logprobs = False
        return submit


def choice_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request with `seed`, both from 0 to 2**64 - 1; that of choice 0 is `seed`.

    Hashed, because neighbouring seeds are what people choose: choice 1 of seed 7 must not be choice 0 of seed 8.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest())
