"""Every parameter at the ends of its range, alone and with others: a token is drawn, and nothing overflows."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.sampling import Sampler, validate_sampling
from attention.sampling_limits import MAX_BIAS, MAX_PENALTY, MAX_REPETITION, MIN_REPETITION
from protos.generation_pb2 import Sampling
from serving import schemas

CPU = torch.device("cpu")
VOCAB = 130
TINY, HUGE = 2.0**-126, 3.4e38  # float32's
ENDS: dict[str, list[float]] = {
    "temperature": [0.0, TINY, 1e-5, 1.1e-5, 1e6, HUGE],
    "top_p": [TINY, 1e-9, 1.0],
    "top_k": [1, VOCAB, 2**32 - 1],
    "min_p": [0.0, TINY, 1.0],
    "presence_penalty": [-MAX_PENALTY, MAX_PENALTY],
    "frequency_penalty": [-MAX_PENALTY, MAX_PENALTY],
    "repetition_penalty": [MIN_REPETITION, MAX_REPETITION],
    "seed": [0, 2**64 - 1],
    "min_tokens": [2**32 - 1],
    "logprobs": [0, VOCAB],
}
LOGITS: dict[str, Callable[[], torch.Tensor]] = {
    "random": lambda: torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1)) * 5,
    "equal": lambda: torch.zeros(1, VOCAB),
    "large": lambda: torch.linspace(-1e4, 1e4, VOCAB)[None],
    "tiny": lambda: torch.full((1, VOCAB), 1e-40),
}


def check(parameters: dict[str, Any], bias: float, kind: str) -> None:
    sampling = Sampling(**{"temperature": 1.0, **parameters}, logit_bias=dict.fromkeys(range(0, VOCAB, 3), bias))
    validate_sampling(sampling, VOCAB)
    sampler = Sampler(VOCAB, 1, (2, 3), CPU)
    sampler.add(0, sampling, list(range(VOCAB)), [5] * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            sampled = sampler.sample(LOGITS[kind](), [0])
            assert not sampled.failed
            assert 0 <= sampled.token_ids[0] < VOCAB
            for logprob in (sampled.logprobs or {}).values():
                assert np.isfinite([logprob.logprob, *logprob.alternative_logprobs]).all()


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ENDS.items() for value in values])
def test_alone(name: str, value: float, kind: str) -> None:
    check({name: value}, 0.0, kind)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in ENDS.items()}),
    st.sampled_from([-MAX_BIAS, 0.0, MAX_BIAS]),
    st.sampled_from(list(LOGITS)),
)
def test_together(parameters: dict[str, Any], bias: float, kind: str) -> None:
    check(parameters, bias, kind)


def test_gateways_and_nodes_allow_the_same() -> None:
    assert (schemas.MIN_REPETITION, schemas.MAX_REPETITION) == (MIN_REPETITION, MAX_REPETITION)
    for least_or_most in (MIN_REPETITION, MAX_REPETITION):
        validate_sampling(Sampling(repetition_penalty=least_or_most), VOCAB)
