"""Allowed tokens and bad words: against the plain oracle, together with others, and after a move to another node."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.bad_words import MAX_BAD_WORD_TOKENS
from attention.sampling import FORBIDDEN, Sampler
from protos.generation_pb2 import Sampling
from tests.attention.sampling_oracle import edited
from tests.attention.small_engine import bad_words

EOS = (2, 3)
CPU = torch.device("cpu")
VOCABULARY = 70
FEW = [1, 4, 30, 69]  # so few that bad words are met


def make_logits(seed: int, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    few = st.sampled_from(FEW)
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
        allowed_token_ids=draw(st.sampled_from([(), FEW, [*FEW, *FEW], [2, *FEW]])),
        min_tokens=draw(st.sampled_from([0, 3])),
        logit_bias=draw(st.dictionaries(few, st.sampled_from([-100.0, 50.0, 100.0]), max_size=3)),
        frequency_penalty=draw(st.sampled_from([0.0, -2.0])),
        **bad_words(*draw(st.lists(st.lists(few, min_size=1, max_size=4), max_size=5))),
    )
    if draw(st.booleans()):
        sampling.top_k = draw(st.integers(1, 8))
    return sampling


@settings(max_examples=150, deadline=None)
@given(st.lists(samplings(), min_size=1, max_size=4), st.integers(0, 2**31), st.integers(0, 8))
def test_rows_follow_the_oracle_together_and_after_a_move(asked: list[Sampling], seed: int, moved_at: int) -> None:
    together = Sampler(VOCABULARY, 5, EOS, CPU)
    lanes = list(range(1, len(asked) + 1))
    together.add(0, Sampling(), [], [])  # a neighbour that must stay plain
    for lane, sampling in zip(lanes, asked, strict=True):
        together.add(lane, sampling, FEW, [])
    outputs: dict[int, list[int]] = {lane: [] for lane in lanes}
    live = list(lanes)
    for step in range(10):
        logits = make_logits(seed + step, len(asked) + 1)
        sampled = together.sample(logits[[0, *live]], [0, *live])
        assert sampled.token_ids[0] == int(logits[0].argmax())
        for row, lane in enumerate(list(live), start=1):
            sampling, token_id = asked[lane - 1], sampled.token_ids[row]
            wanted = edited(logits[lane].double().numpy(), sampling, FEW, outputs[lane], EOS)
            if np.isinf(wanted.max()):
                assert sampled.failed[row] == FORBIDDEN
                live.remove(lane)
                continue
            assert wanted[token_id] > -np.inf, (step, sampling)
            if sampling.temperature == 0:
                assert wanted[token_id] >= wanted.max() - 1e-4
            if step >= moved_at:
                elsewhere = Sampler(VOCABULARY, 1, EOS, CPU)
                elsewhere.add(0, sampling, FEW, outputs[lane])
                assert elsewhere.sample(logits[[lane]], [0]).token_ids == [token_id]
            outputs[lane].append(token_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_left_alone_and_others_are_not_touched(dtype: torch.dtype) -> None:
    logits = make_logits(1, 3).to(dtype)
    before = logits.clone()
    sampler = Sampler(VOCABULARY, 3, EOS, CPU)
    sampler.add(0, Sampling(), [], [])
    sampler.add(1, Sampling(allowed_token_ids=[5]), [], [])
    sampler.add(2, Sampling(**bad_words([int(logits[2].argmax())])), [], [])
    best, second = logits[0].argmax().item(), logits[2].topk(2).indices[1].item()
    assert sampler.sample(logits, [0, 1, 2]).token_ids == [best, 5, second]
    assert torch.equal(logits, before)


def test_the_longest_word_is_met_at_its_end_alone() -> None:
    word = [7, 8] * (MAX_BAD_WORD_TOKENS // 2)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 8] = 9.0
    for written in (word[:-1], [9, *word[:-1]], word[1:-1], word[:-2], [*word[:-1], 9]):
        sampler = Sampler(VOCABULARY, 1, EOS, CPU)
        sampler.add(0, Sampling(**bad_words(word)), [], written)
        assert (sampler.sample(logits, [0]).token_ids == [8]) == (written[-31:] != word[:-1])


def test_the_prompt_is_no_part_of_a_bad_word() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 8] = 9.0
    sampler = Sampler(VOCABULARY, 1, EOS, CPU)
    sampler.add(0, Sampling(**bad_words([7, 8])), [7], [])
    assert sampler.sample(logits, [0]).token_ids == [8]


def test_a_lane_used_again_keeps_nothing_of_its_last_sequence() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 8] = 9.0
    sampler = Sampler(VOCABULARY, 1, EOS, CPU)
    sampler.add(0, Sampling(allowed_token_ids=[8], **bad_words([8, 8])), [], [])
    assert sampler.sample(logits, [0]).token_ids == [8]
    sampler.remove(0)
    sampler.add(0, Sampling(**bad_words([8, 8])), [], [])
    assert [sampler.sample(logits, [0]).token_ids[0] for _ in range(3)] == [8, 0, 8]


def test_a_nan_is_not_the_requests_fault() -> None:
    logits = make_logits(1, 1)
    logits[0, 3] = float("nan")
    sampler = Sampler(VOCABULARY, 1, EOS, CPU)
    sampler.add(0, Sampling(allowed_token_ids=[3], temperature=1.0), [], [])
    assert sampler.sample(logits, [0]).failed[0].code == "internal"
