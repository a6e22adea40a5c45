"""Reported log-probabilities against torch's log-softmax of the raw logits."""

import numpy as np
import pytest
import torch

from attention.logprobs import CHUNK_ROWS
from attention.sampling import Sampler, prompt_logprobs
from protos.generation_pb2 import Sampling, TokenLogprob


def check(score: TokenLogprob, logits: torch.Tensor, token_id: int, num_alternatives: int) -> None:
    wanted = torch.log_softmax(logits.double(), dim=-1)
    assert score.token_id == token_id
    assert score.logprob == pytest.approx(wanted[token_id].item(), abs=1e-5)
    assert score.rank == 1 + int((logits > logits[token_id]).sum())
    order = np.argsort(-logits.float().numpy(), kind="stable")[:num_alternatives]
    assert list(score.alternative_ids) == order.tolist()
    assert list(score.alternative_logprobs) == pytest.approx(wanted[torch.from_numpy(order)].tolist(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_rows_that_ask_and_of_the_raw_logits(dtype: torch.dtype) -> None:
    logits = (torch.randn(4, 200, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    sampler = Sampler(200, 4, (0,), torch.device("cpu"))
    sampler.add(0, Sampling(logprobs=0), [], [])
    sampler.add(1, Sampling(temperature=2.0, logprobs=7, logit_bias={3: 50.0}, seed=4), [], [])
    sampler.add(2, Sampling(temperature=2.0), [], [])
    sampler.add(3, Sampling(temperature=2.0, top_k=50, logprobs=200), [], [])
    sampled = sampler.sample(logits, [0, 1, 2, 3])
    assert sampled.token_ids[1] == 3
    assert sampled.logprobs is not None
    assert set(sampled.logprobs) == {0, 1, 3}
    for row, num in ((0, 0), (1, 7), (3, 200)):
        check(sampled.logprobs[row], logits[row], sampled.token_ids[row], num)
    sampler.remove(1)
    assert sampler.sample(logits[2:3], [2]).logprobs is None


def test_alternatives_that_are_named() -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 4
    sampler = Sampler(200, 3, (0,), torch.device("cpu"))
    named = {0: [7, 199, 7], 2: [3]}
    sampler.add(0, Sampling(logprobs=5, logprob_token_ids=named[0]), [], [])
    sampler.add(1, Sampling(logprobs=2), [], [])
    sampler.add(2, Sampling(logprobs=0, logprob_token_ids=named[2]), [], [])
    sampled = sampler.sample(logits, [0, 1, 2])
    assert sampled.logprobs is not None
    check(sampled.logprobs[1], logits[1], sampled.token_ids[1], 2)
    for row, ids in named.items():
        score, wanted = sampled.logprobs[row], torch.log_softmax(logits[row].double(), dim=-1)
        assert score.logprob == pytest.approx(wanted[sampled.token_ids[row]].item(), abs=1e-5)
        assert list(score.alternative_ids) == ids
        assert list(score.alternative_logprobs) == pytest.approx(wanted[ids].tolist(), abs=1e-5)


@pytest.mark.parametrize("num_alternatives", [0, 3])
def test_prompt_logprobs_over_several_chunks(num_alternatives: int) -> None:
    num_tokens, vocab_size = CHUNK_ROWS + 9, 90
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_tokens, vocab_size, generator=generator)
    next_ids = torch.randint(vocab_size, (num_tokens,), generator=generator).tolist()
    scores = prompt_logprobs(logits, next_ids, num_alternatives)
    assert len(scores) == num_tokens
    for token, score in enumerate(scores):
        check(score, logits[token], next_ids[token], num_alternatives)
    assert prompt_logprobs(logits[:0], [], num_alternatives) == []
