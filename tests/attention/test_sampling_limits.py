"""Each parameter out of range is refused with an error that names it."""

import pytest

from attention.sampling import SamplingError, validate_sampling
from protos.generation_pb2 import Sampling
from tests.attention.small_engine import bad_words

NAN = float("nan")


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=NAN), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(top_p=-0.1), "top_p"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(top_p=NAN), "top_p"),
        (Sampling(top_k=0), "top_k"),
        (Sampling(min_p=-0.1), "min_p"),
        (Sampling(min_p=1.5), "min_p"),
        (Sampling(presence_penalty=2.5), "presence_penalty"),
        (Sampling(frequency_penalty=NAN), "frequency_penalty"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(repetition_penalty=1e-38), "repetition_penalty"),
        (Sampling(repetition_penalty=0.0099), "repetition_penalty"),
        (Sampling(repetition_penalty=100.1), "repetition_penalty"),
        (Sampling(repetition_penalty=float("inf")), "repetition_penalty"),
        (Sampling(logit_bias={100: 1.0}), "logit_bias"),
        (Sampling(logit_bias={1: 101.0}), "logit_bias"),
        (Sampling(stop_token_ids=[100]), "stop_token_ids"),
        (Sampling(logprobs=101), "logprobs"),
        (Sampling(allowed_token_ids=[1, 100]), "allowed_token_ids"),
        (Sampling(logprob_token_ids=[100]), "logprob_token_ids"),
        (Sampling(**bad_words([1, 100])), "bad_words"),
        (Sampling(num_ids_per_bad_word=[1]), "bad_words"),
        (Sampling(bad_word_ids=[1]), "bad_words"),
        (Sampling(num_ids_per_bad_word=[0]), "bad_words"),
        (Sampling(**bad_words([1] * 33)), "bad_words"),
        (Sampling(max_tokens=3, min_tokens=4), "min_tokens"),
    ],
)
def test_out_of_range(sampling: Sampling, name: str) -> None:
    with pytest.raises(SamplingError, match=rf"^{name}: got .*; allowed: "):
        validate_sampling(sampling, vocab_size=100)


@pytest.mark.parametrize("min_tokens", [0, 1])
@pytest.mark.parametrize(
    ("allowed", "bad", "always"),
    [([1], [[1]], True), ([1, 2], [[1], [2]], True), ([0], [[1]], False), ([0, 5], [[0, 0]], False), ([0], [], False)],
)
def test_a_token_must_be_left(min_tokens: int, allowed: list[int], bad: list[list[int]], always: bool) -> None:
    """End-of-sequence (0) and a stop (5) are forbidden until there are `min_tokens`."""
    sampling = Sampling(allowed_token_ids=allowed, min_tokens=min_tokens, stop_token_ids=[5], **bad_words(*bad))
    refused = "leave no token" in refusal(sampling, eos_token_ids=(0,))
    assert refused == (always or min_tokens == 1)


def refusal(sampling: Sampling, eos_token_ids: tuple[int, ...] = ()) -> str:
    """Why it is refused; nothing when it is not."""
    try:
        validate_sampling(sampling, vocab_size=100, eos_token_ids=eos_token_ids)
    except SamplingError as error:
        return str(error)
    return ""


def test_in_range() -> None:
    assert refusal(Sampling()) == ""
    edges = Sampling(
        temperature=3.0,
        top_p=1.0,
        top_k=1000,
        min_p=0.0,
        presence_penalty=-2.0,
        repetition_penalty=0.5,
        logit_bias={99: -100.0},
        stop_token_ids=[99],
        logprobs=20,
        max_tokens=4,
        min_tokens=4,
    )
    assert refusal(edges) == ""
