"""What a request may ask of the sampler. Checked once, when the request arrives; no torch needed."""

import math
from collections.abc import Sequence
from itertools import accumulate

from attention.bad_words import MAX_BAD_WORD_TOKENS
from protos.generation_pb2 import Sampling

MAX_BIAS = 100.0  # as in OpenAI's API
MAX_PENALTY = 2.0  # as in OpenAI's API
MIN_REPETITION, MAX_REPETITION = 0.01, 100.0  # beyond, a product with a logit could leave float32's range


class SamplingError(ValueError):
    """A sampling parameter is out of range; the message says what was given and what is allowed."""


def validate_sampling(sampling: Sampling, vocab_size: int, eos_token_ids: Sequence[int] = ()) -> None:
    """Raises SamplingError unless each field that is set is in its range and each token id below `vocab_size`.

    So it does where no token is left to be drawn first; `eos_token_ids` are forbidden until `min_tokens`.
    """
    _check_truncation(sampling)
    _check_penalties(sampling)
    _check_token_ids(sampling, vocab_size)
    if sampling.HasField("logprobs"):
        _require(sampling.logprobs <= vocab_size, "logprobs", sampling.logprobs, f"at most {vocab_size}")
    if sampling.HasField("max_tokens") and sampling.min_tokens > sampling.max_tokens:
        _require(False, "min_tokens", sampling.min_tokens, f"at most max_tokens ({sampling.max_tokens})")
    if not _leaves_a_token(sampling, vocab_size, eos_token_ids):
        raise SamplingError("allowed_token_ids, bad_words and min_tokens leave no token that could be drawn")


def _check_truncation(sampling: Sampling) -> None:
    temperature = sampling.temperature
    _require(math.isfinite(temperature) and temperature >= 0, "temperature", temperature, "a finite number, at least 0")
    if sampling.HasField("top_p"):
        _require(0 <= sampling.top_p <= 1, "top_p", sampling.top_p, "from 0 to 1")
    if sampling.HasField("top_k"):
        _require(sampling.top_k >= 1, "top_k", sampling.top_k, "at least 1 (leave it out to consider every token)")
    if sampling.HasField("min_p"):
        _require(0 <= sampling.min_p <= 1, "min_p", sampling.min_p, "from 0 to 1")


def _check_penalties(sampling: Sampling) -> None:
    allowed = f"from {-MAX_PENALTY:g} to {MAX_PENALTY:g}"
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    _require(abs(presence) <= MAX_PENALTY, "presence_penalty", presence, allowed)
    _require(abs(frequency) <= MAX_PENALTY, "frequency_penalty", frequency, allowed)
    if sampling.HasField("repetition_penalty"):
        given, allowed = sampling.repetition_penalty, f"from {MIN_REPETITION:g} to {MAX_REPETITION:g}"
        least = MIN_REPETITION * (1 - 1e-6)  # as float32 has it
        _require(least <= given <= MAX_REPETITION, "repetition_penalty", given, allowed)


def _check_token_ids(sampling: Sampling, vocab_size: int) -> None:
    allowed = f"token ids below the vocabulary's size, {vocab_size}"
    for token_id, bias in sampling.logit_bias.items():
        _require(token_id < vocab_size, "logit_bias", token_id, allowed)
        _require(abs(bias) <= MAX_BIAS, "logit_bias", bias, f"from {-MAX_BIAS:g} to {MAX_BIAS:g} for each token")
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        for token_id in getattr(sampling, name):
            _require(token_id < vocab_size, name, token_id, allowed)
    for length in sampling.num_ids_per_bad_word:
        words = f"1 to {MAX_BAD_WORD_TOKENS} tokens"
        _require(0 < length <= MAX_BAD_WORD_TOKENS, "bad_words", length, words)
    num_ids = sum(sampling.num_ids_per_bad_word)
    _require(num_ids == len(sampling.bad_word_ids), "bad_words", len(sampling.bad_word_ids), f"{num_ids} tokens in all")
    if sampling.bad_word_ids:
        _require(max(sampling.bad_word_ids) < vocab_size, "bad_words", max(sampling.bad_word_ids), allowed)


def _leaves_a_token(sampling: Sampling, vocab_size: int, eos_token_ids: Sequence[int]) -> bool:
    """Whether a first token can be drawn at all."""
    lengths = sampling.num_ids_per_bad_word
    ends = zip(accumulate(lengths), lengths, strict=True)
    forbidden = {sampling.bad_word_ids[end - 1] for end, length in ends if length == 1}
    if sampling.min_tokens:
        forbidden.update(eos_token_ids, sampling.stop_token_ids)
    if sampling.allowed_token_ids:
        return not forbidden.issuperset(sampling.allowed_token_ids)
    return len(forbidden) < vocab_size


def _require(holds: bool, name: str, given: float, allowed: str) -> None:
    if not holds:
        raise SamplingError(f"{name}: got {given:g}; allowed: {allowed}")
