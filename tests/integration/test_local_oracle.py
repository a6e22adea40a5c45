"""Engine, router and experts in one process say what transformers' MixtralForCausalLM says, in fp32, token for token.

Chosen combinations of window, chunk, heads, experts and cuts; every batch mixes lengths, joins and leaves.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attention.dense import DenseModel
from manta.local import LocalModel, LocalSettings
from protos.generation_pb2 import LENGTH, Sampling, Submit
from tests.local_driver import Outcome, Wish, run
from tests.oracle import TOLERANCE, Oracle, check_scores
from tests.random_checkpoint import make_checkpoint

VOCABULARY = 97
SMALL = {"hidden_size": 32, "ffn_size": 48, "vocab_size": VOCABULARY, "with_tokenizer": False}
MODELS = {
    "full attention, grouped heads": {"window": None, "num_kv_heads": 2},
    "window 16, ungrouped heads, 5 experts of which 3, tied": {
        "window": 16,
        "num_kv_heads": 4,
        "head_dim": 16,
        "num_experts": 5,
        "top_k": 3,
        "tie": True,
    },
    "window 64, one key head, 4 experts of which 1, fused names": {
        "window": 64,
        "num_kv_heads": 1,
        "num_experts": 4,
        "top_k": 1,
        "fused_names": True,
    },
}
FULL, WINDOW_16, WINDOW_64 = MODELS

Checkpoint = tuple[Path, Oracle]
Checkpoints = Callable[[str, int], Checkpoint]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """(name in MODELS, seed) -> its directory and its oracle, made once."""
    made: dict[tuple[str, int], Checkpoint] = {}

    def get(name: str, seed: int) -> Checkpoint:
        if (name, seed) not in made:
            directory = tmp_path_factory.mktemp("checkpoint")
            made[name, seed] = directory, Oracle(make_checkpoint(directory, seed=seed, **SMALL, **MODELS[name]))
        return made[name, seed]

    return get


def greedy(num_tokens: int, **more: object) -> Sampling:
    return Sampling(max_tokens=num_tokens, ignore_eos=True, logprobs=VOCABULARY, **more)


def prompt_of(length: int, rng: random.Random) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def mixed_wishes(window: int, rng: random.Random) -> list[Wish]:
    """Prompts from one token to several windows, that join and leave at different steps."""
    lengths = [1, 5, window, window + 1, 3 * window + rng.randrange(window), 2 * window]
    outputs = [window // 2 + 20, 1, 9, window // 4 + 10, 24, 5]
    joins = [0, 0, 2, 3, 3, 11]
    return [
        Wish(prompt_of(length, rng), greedy(num), join)
        for length, num, join in zip(lengths, outputs, joins, strict=True)
    ]


def check_all(oracle: Oracle, wishes: list[Wish], outcomes: list[Outcome]) -> None:
    for wish, outcome in zip(wishes, outcomes, strict=True):
        assert len(outcome.tokens) == wish.sampling.max_tokens
        assert outcome.finish_reason == LENGTH
        oracle.check_greedy(wish.prompt, outcome.tokens, outcome.scores)


@pytest.mark.parametrize(
    ("name", "chunk", "budget"),
    [
        (FULL, None, 2048),  # chunks larger than the prompts
        (FULL, 7, 2048),
        (FULL, 50, 60),  # the budget cuts chunks too
        (WINDOW_16, None, 2048),  # chunk = window
        (WINDOW_16, 5, 2048),
        (WINDOW_16, 24, 30),  # larger than the window, smaller than the prompts
        (WINDOW_16, 500, 2048),  # larger than both
        (WINDOW_64, None, 2048),
        (WINDOW_64, 13, 40),
        (WINDOW_64, 100, 2048),
    ],
)
def test_batches_of_different_lengths(
    checkpoints: Checkpoints, seed: int, name: str, chunk: int | None, budget: int
) -> None:
    directory, oracle = checkpoints(name, seed)
    wishes = mixed_wishes(MODELS[name]["window"] or 40, random.Random(seed))
    model = LocalModel(directory, LocalSettings(prefill_chunk=chunk, max_batch_tokens=budget, max_sequences=5))
    outcomes = run(model, wishes)
    check_all(oracle, wishes, outcomes)
    assert len({outcome.ended_at for outcome in outcomes}) > 3, "the sequences were to leave at different steps"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [20, 70, 71, 72, 200])
def test_logits_and_chunks_around_the_prompt(
    checkpoints: Checkpoints, seed: int, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks smaller than, equal to (71) and larger than the prompt; the logits themselves, not only their scores."""
    directory, oracle = checkpoints(name, seed)
    rng = random.Random(seed)
    prompt = oracle.certain_prompt(lambda: prompt_of(71, rng), 12)
    model = LocalModel(directory, LocalSettings(prefill_chunk=chunk))
    rows: list[torch.Tensor] = []
    compute = DenseModel.logits

    def recording(self: DenseModel, rows_TD: torch.Tensor) -> torch.Tensor:
        rows.append(compute(self, rows_TD).clone())
        return rows[-1]

    monkeypatch.setattr(DenseModel, "logits", recording)
    (outcome,) = run(model, [Wish(prompt, greedy(12))])
    oracle.check_greedy(prompt, outcome.tokens, outcome.scores)
    verdict = oracle.verdict(prompt + outcome.tokens)
    last = min(len(prompt) + 11, verdict.num_certain)
    wrong = (torch.cat(rows)[: last - len(prompt) + 1] - verdict.logits_TV[len(prompt) - 1 : last]).abs().max()
    assert wrong <= TOLERANCE, f"a logit is off by {wrong}"


@pytest.mark.parametrize(("per_actor", "slices"), [(1, 1), (2, 1), (None, 3), (2, 2)])
@pytest.mark.parametrize("name", [WINDOW_16, WINDOW_64])
def test_how_the_experts_are_cut_changes_nothing(
    checkpoints: Checkpoints, seed: int, name: str, per_actor: int | None, slices: int
) -> None:
    directory, oracle = checkpoints(name, seed)
    wishes = [Wish(prompt_of(length, random.Random(seed + length)), greedy(12)) for length in (3, 30, 90)]
    whole = run(LocalModel(directory), wishes)
    cut = run(LocalModel(directory, LocalSettings(per_actor=per_actor, slices=slices)), wishes)
    check_all(oracle, wishes, cut)
    for wish, one, other in zip(wishes, whole, cut, strict=True):
        oracle.check_same(wish.prompt, one.tokens, other.tokens)


@pytest.mark.parametrize("name", MODELS)
def test_decode_then_rescore(checkpoints: Checkpoints, seed: int, name: str) -> None:
    """Prompt and output as one prompt get the log-probabilities that decoding reported."""
    directory, oracle = checkpoints(name, seed)
    rng = random.Random(seed)
    model = LocalModel(directory, LocalSettings(prefill_chunk=11))
    sampled = Sampling(max_tokens=30, ignore_eos=True, temperature=1.0, seed=seed, logprobs=VOCABULARY)
    wishes = [Wish(prompt_of(length, rng), sampled) for length in (1, 2, 40, 130)]
    decoded = run(model, wishes)
    again = [
        Wish(wish.prompt + outcome.tokens, greedy(0, prompt_logprobs=True))
        for wish, outcome in zip(wishes, decoded, strict=True)
    ]
    for wish, outcome, rescored in zip(wishes, decoded, run(model, again), strict=True):
        assert len(rescored.prompt_scores) == len(wish.prompt) + len(outcome.tokens) - 1
        assert not rescored.tokens
        verdict = oracle.verdict(wish.prompt + outcome.tokens)
        check_scores(verdict, 0, rescored.prompt_scores)
        for index, score in enumerate(outcome.scores):
            position = len(wish.prompt) - 1 + index
            if position < verdict.num_certain:
                assert score.logprob == pytest.approx(rescored.prompt_scores[position].logprob, abs=TOLERANCE)


def sampled_wishes(seed: int) -> list[Wish]:
    """Prompts that fill most of one cache block, and outputs that need a second one; sampled in several ways."""
    rng = random.Random(seed)
    manners = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3},
        {"temperature": 1.2, "top_k": 20, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    ]
    return [
        Wish(
            prompt_of(50 + 3 * index, rng), Sampling(max_tokens=50, ignore_eos=True, seed=seed + index, **manner), index
        )
        for index, manner in enumerate(manners)
    ]


@pytest.mark.parametrize("chunk", [None, 10])
def test_preempted_sequences_say_the_same(checkpoints: Checkpoints, seed: int, chunk: int | None) -> None:
    directory, oracle = checkpoints(FULL, seed)
    wishes = sampled_wishes(seed)
    unhurried = LocalModel(directory, LocalSettings(max_context=128, prefill_chunk=chunk))
    crowded = LocalModel(directory, LocalSettings(max_context=128, prefill_chunk=chunk, cache_tokens=256))
    expected, outcomes = run(unhurried, wishes), run(crowded, wishes)
    assert not unhurried.engine.scheduler.num_preemptions
    assert crowded.engine.scheduler.num_preemptions
    oracle.check_same(wishes[0].prompt, expected[0].tokens, outcomes[0].tokens)
    for one, other in zip(expected[1:], outcomes[1:], strict=True):
        assert one.tokens == other.tokens


@pytest.mark.parametrize("name", [FULL, WINDOW_16])
@pytest.mark.parametrize("num_emitted", [1, 17, 49, 50])
def test_resumed_sequences_go_on_as_they_would_have(
    checkpoints: Checkpoints, seed: int, name: str, num_emitted: int
) -> None:
    directory, oracle = checkpoints(name, seed)
    wishes = sampled_wishes(seed)
    expected = run(LocalModel(directory), wishes)
    resumed = [
        Wish(wish.prompt, wish.sampling, wish.joins_at, whole.tokens[:num_emitted])
        for wish, whole in zip(wishes, expected, strict=True)
    ]
    outcomes = run(LocalModel(directory, LocalSettings(prefill_chunk=23)), resumed)
    for wish, whole, rest in zip(resumed, expected, outcomes, strict=True):
        together = wish.output + rest.tokens
        assert rest.finish_reason == LENGTH
        if wish.sampling.temperature:
            assert together == whole.tokens
        else:
            oracle.check_same(wish.prompt, whole.tokens, together)


def test_cancelling_frees_everything_and_changes_nobody(checkpoints: Checkpoints, seed: int) -> None:
    directory, oracle = checkpoints(WINDOW_16, seed)
    rng = random.Random(seed)
    model = LocalModel(directory, LocalSettings(prefill_chunk=8, max_sequences=3))
    prompts = [prompt_of(length, rng) for length in (20, 60, 5, 30, 12)]  # two of them wait
    prompts[0] = oracle.certain_prompt(lambda: prompt_of(20, rng), 25)
    keys = [model.submit(Submit(prompt_ids=prompt, sampling=greedy(25))) for prompt in prompts]
    kept, tokens = keys[0], []
    for step in range(200):
        for key, output in model.step():
            assert key not in keys[1 : 1 + step // 3], "a cancelled sequence got a message"
            if key == kept:
                tokens.extend(output.token_ids)
        if step % 3 == 2 and step < 12:
            model.engine.cancel(keys[1 + step // 3])
            model.engine.check_integrity()
    assert not model.engine.has_work
    model.engine.check_integrity()
    oracle.check_greedy(prompts[0], tokens)
    assert len(tokens) == 25


def test_float64(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the path drops to float32 but what transformers computes so as well (norms, gates, angles)."""
    monkeypatch.setattr("manta.local.torch_dtype", lambda name: torch.float64)
    oracle = Oracle(make_checkpoint(tmp_path, seed=seed, window=16, **SMALL).double())
    wishes = mixed_wishes(16, random.Random(seed))
    model = LocalModel(tmp_path, LocalSettings(per_actor=3, slices=2))
    check_all(oracle, wishes, run(model, wishes))
