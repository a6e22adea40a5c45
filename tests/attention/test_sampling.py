"""The sampler as a whole: greedy, resuming, batching, penalties, failures, and the distribution it draws from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.sampling import Sampler
from protos.generation_pb2 import Sampling
from tests.attention.sampling_oracle import distribution, edited

EOS = (2, 3)
CPU = torch.device("cpu")


def make_logits(seed: int, num_rows: int, vocab_size: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


@st.composite
def samplings(draw: st.DrawFn, vocab_size: int) -> Sampling:
    """Every parameter, each off half of the time."""
    token_ids = st.integers(0, vocab_size - 1)
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.5])),
        seed=draw(st.integers(0, 2**64 - 1)),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -1.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5])),
        min_tokens=draw(st.sampled_from([0, 0, 2, 5])),
        stop_token_ids=draw(st.sets(token_ids, max_size=2)),
        logit_bias=draw(st.dictionaries(token_ids, st.sampled_from([-100.0, -2.0, 3.0]), max_size=3)),
    )
    if draw(st.booleans()):
        sampling.top_k = draw(st.integers(1, 2 * vocab_size))
    if draw(st.booleans()):
        sampling.top_p = draw(st.floats(0.0625, 1.0, width=32))
    if draw(st.booleans()):
        sampling.min_p = draw(st.floats(0.0, 1.0, width=32))
    if draw(st.booleans()):
        sampling.repetition_penalty = draw(st.sampled_from([0.7, 1.0, 1.3]))
    if draw(st.booleans()):
        sampling.logprobs = draw(st.integers(0, 5))
    return sampling


@settings(max_examples=60, deadline=None)
@given(
    st.data(), st.integers(0, 2**31), st.sampled_from([37, 64, 130]), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_batched_equals_alone_equals_resumed(
    data: st.DataObject, seed: int, vocab_size: int, dtype: torch.dtype
) -> None:
    asked = data.draw(st.lists(samplings(vocab_size), min_size=1, max_size=6))
    num_rows, num_steps = len(asked), 5
    prompts = [[(7 * row + i) % vocab_size for i in range(row)] for row in range(num_rows)]
    steps = [make_logits(seed + step, num_rows, vocab_size).to(dtype) for step in range(num_steps)]
    together = Sampler(vocab_size, 8, EOS, CPU)
    lanes = [(3 * row + 1) % 8 for row in range(num_rows)]
    for lane, sampling, prompt in zip(lanes, asked, prompts, strict=True):
        together.add(lane, sampling, prompt, [])
    drawn = [together.sample(logits, lanes) for logits in steps]
    for row in range(num_rows):
        outputs = [step.token_ids[row] for step in drawn]
        for resumed_at in (0, 3):
            alone = Sampler(vocab_size, 1, EOS, CPU)
            alone.add(0, asked[row], prompts[row], outputs[:resumed_at])
            for step in range(resumed_at, num_steps):
                sampled = alone.sample(steps[step][row : row + 1], [0])
                assert sampled.token_ids == [outputs[step]], (row, step, resumed_at)
                mine = (drawn[step].logprobs or {}).get(row)
                assert (sampled.logprobs or {}).get(0) == mine


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 2**31), st.sampled_from([5, 64, 130, 1000]))
def test_draws_only_what_the_oracle_allows(data: st.DataObject, seed: int, vocab_size: int) -> None:
    sampling = data.draw(samplings(vocab_size))
    prompt, outputs = [0, 1, 1], data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=6))
    logits = make_logits(seed, 1, vocab_size)
    expected = distribution(edited(logits[0].double().numpy(), sampling, prompt, outputs, EOS), sampling)
    for extra in range(20):
        sampling.seed = seed + extra
        sampler = Sampler(vocab_size, 1, EOS, CPU)
        sampler.add(0, sampling, prompt, outputs)
        (token_id,) = sampler.sample(logits, [0]).token_ids
        assert expected[token_id] > 0, (token_id, sampling)


CASES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=20),
    Sampling(temperature=1.0, top_k=110),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=0.8, top_k=30, top_p=0.9),
    Sampling(temperature=1.5, min_p=0.02),
    Sampling(temperature=1.5, min_p=0.02, top_p=0.9),
    Sampling(temperature=1.0, frequency_penalty=0.8, repetition_penalty=1.4, logit_bias={5: 2.0}, min_tokens=9),
]


@pytest.mark.parametrize("sampling", CASES, ids=lambda case: " ".join(str(case).split("\n")))
def test_distribution_over_many_seeds(sampling: Sampling) -> None:
    vocab_size, num_draws, prompt, outputs = 130, 20_000, [9, 10], [11, 11, 12]
    logits = make_logits(1, 1, vocab_size, scale=1.5)
    expected = distribution(edited(logits[0].double().numpy(), sampling, prompt, outputs, EOS), sampling) * num_draws
    sampler = Sampler(vocab_size, num_draws, EOS, CPU)
    for lane in range(num_draws):
        sampling.seed = lane
        sampler.add(lane, sampling, prompt, outputs)
    token_ids = sampler.sample(logits.expand(num_draws, -1), range(num_draws)).token_ids
    counts = np.bincount(token_ids, minlength=vocab_size)
    assert counts[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 10)  # pooled, as the chi-square test wants
    observed = np.append(counts[expected >= 10], counts[rare].sum())
    wanted = np.append(expected[expected >= 10], expected[rare].sum() + 1e-9)
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1 - (not rare.any())
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), (statistic, freedom)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_and_top_k_of_one_are_argmax(dtype: torch.dtype) -> None:
    logits = make_logits(3, 6, 300).to(dtype)
    best = logits.float().numpy().argmax(axis=-1).tolist()  # the lowest id among equal ones
    sampler = Sampler(300, 12, EOS, CPU)
    for lane in range(6):
        sampler.add(lane, Sampling(), [], [])
        sampler.add(6 + lane, Sampling(temperature=1.0, top_k=1, seed=lane), [], [])
    before = logits.clone()
    assert sampler.sample(logits, range(6)).token_ids == best
    assert sampler.sample(logits, range(6, 12)).token_ids == best
    assert torch.equal(logits, before)


def test_a_top_p_of_zero_is_greedy() -> None:
    logits = make_logits(3, 4, 300)
    sampler = Sampler(300, 4, EOS, CPU)
    for lane in range(4):
        sampler.add(lane, Sampling(temperature=1.0 + lane, top_p=0.0, seed=lane), [], [])
    assert sampler.sample(logits, range(4)).token_ids == logits.argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy_and_a_small_one_does_not_overflow() -> None:
    logits = make_logits(4, 2, 100) * 1000
    sampler = Sampler(100, 2, EOS, CPU)
    sampler.add(0, Sampling(temperature=1e-30), [], [])
    sampler.add(1, Sampling(temperature=2e-5, top_p=0.9), [], [])
    assert sampler.sample(logits, [0, 1]).token_ids == logits.argmax(-1).tolist()


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2**31))
def test_greedy_with_edits_follows_the_oracle(data: st.DataObject, seed: int) -> None:
    vocab_size, prompt = 70, [4, 5, 5]
    sampling = data.draw(samplings(vocab_size))
    sampling.temperature = 0.0
    sampler = Sampler(vocab_size, 2, EOS, CPU)
    sampler.add(0, Sampling(), [], [])  # a neighbour that must stay plain
    sampler.add(1, sampling, prompt, [])
    outputs: list[int] = []
    for step in range(8):
        logits = make_logits(seed + step, 2, vocab_size, scale=1.0)
        wanted = edited(logits[1].double().numpy(), sampling, prompt, outputs, EOS)
        plain, chosen = sampler.sample(logits, [0, 1]).token_ids
        assert plain == int(logits[0].argmax())
        assert wanted[chosen] >= wanted.max() - 1e-5, (step, sampling)
        outputs.append(chosen)


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("bad", [*BAD, -float("inf")])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=5),
        Sampling(temperature=1.0, top_p=0.5, logprobs=2),
        Sampling(temperature=1.0, min_p=0.5, frequency_penalty=1.0),
    ],
)
def test_a_row_without_a_finite_maximum_fails_alone(bad: float, sampling: Sampling) -> None:
    logits = make_logits(5, 3, 130)
    if bad in BAD or np.isnan(bad):
        logits[1, 77] = bad
    else:
        logits[1] = bad
    sampler, healthy = Sampler(130, 3, EOS, CPU), Sampler(130, 3, EOS, CPU)
    for lane in range(3):
        sampler.add(lane, sampling, [], [])
        healthy.add(lane, sampling, [], [])
    sampled = sampler.sample(logits, [0, 1, 2])
    others = healthy.sample(logits[[0, 2]], [0, 2])
    assert list(sampled.failed) == [1]
    assert "finite" in sampled.failed[1].message
    assert sampled.failed[1].code == "internal"
    assert [sampled.token_ids[0], sampled.token_ids[2]] == others.token_ids
    if sampling.HasField("logprobs"):
        assert sampled.logprobs is not None
        assert set(sampled.logprobs) == {0, 2}
    # The failed row recorded nothing: with good logits it draws its first token.
    fresh = make_logits(6, 1, 130)
    assert sampler.sample(fresh, [1]).token_ids == healthy.sample(fresh, [1]).token_ids


def test_min_tokens_forbids_every_stop_token_until_then() -> None:
    sampler = Sampler(50, 1, EOS, CPU)
    sampler.add(0, Sampling(min_tokens=2, stop_token_ids=[9], ignore_eos=True), [], [])
    logits = torch.zeros(1, 50)
    logits[0, [2, 3, 9]] = torch.tensor([5.0, 6.0, 7.0])
    logits[0, 4] = 1.0
    assert [sampler.sample(logits, [0]).token_ids[0] for _ in range(3)] == [4, 4, 9]


def test_everything_forbidden_is_a_failure_not_a_token() -> None:
    sampler = Sampler(4, 1, (0, 1), CPU)
    sampler.add(0, Sampling(temperature=1.0, min_tokens=1, stop_token_ids=[2, 3]), [], [])
    assert list(sampler.sample(torch.zeros(1, 4), [0]).failed) == [0]


def test_a_lane_used_again_keeps_nothing_of_its_last_sequence() -> None:
    logits = make_logits(8, 1, 60)
    reused, fresh = Sampler(60, 1, EOS, CPU), Sampler(60, 1, EOS, CPU)
    reused.add(0, Sampling(temperature=1.0, frequency_penalty=2.0, logit_bias={1: 9.0}, logprobs=1, seed=1), [1], [2])
    reused.sample(logits, [0])
    reused.remove(0)
    for sampler in (reused, fresh):
        sampler.add(0, Sampling(temperature=1.0, top_k=40, seed=2), [], [])
    for _ in range(4):
        assert reused.sample(logits, [0]) == fresh.sample(logits, [0])


def test_an_empty_step_samples_nothing() -> None:
    assert Sampler(10, 1, EOS, CPU).sample(torch.zeros(0, 10), []).token_ids == []
