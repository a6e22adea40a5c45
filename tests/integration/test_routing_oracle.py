"""Routing by sentence and by task, engine, router and experts in one process, against transformers with other gates.

Every batch mixes lengths below, at and above the positions that decide; sequences join and leave, are preempted and
resumed.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attention.admission import SubmitError
from attention.dense import DenseModel
from manta.local import LocalModel, LocalService, LocalSettings
from protos.generation_pb2 import LENGTH, Sampling, Submit
from tests.local_driver import Outcome, Wish, run
from tests.oracle import TOLERANCE, Oracle, check_scores
from tests.routed_checkpoint import TaskModel, make_sentence_checkpoint, make_task_checkpoint

VOCABULARY = 97
SMALL = {"hidden_size": 32, "ffn_size": 48, "vocab_size": VOCABULARY, "with_tokenizer": False}
POSITIONS = 12
WINDOW = 16
TASKS = ("python", "prose", "C++ & co.")

Checkpoint = tuple[Path, Oracle]


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Checkpoint:
    """A model with a window that decides by the first POSITIONS rows."""
    directory = tmp_path_factory.mktemp("sentence")
    return directory, Oracle(make_sentence_checkpoint(directory, POSITIONS, seed=seed, window=WINDOW, **SMALL))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, seed: int) -> tuple[Path, TaskModel]:
    directory = tmp_path_factory.mktemp("task")
    return directory, make_task_checkpoint(directory, TASKS, seed=seed, window=WINDOW, **SMALL)


def greedy(num_tokens: int, **more: object) -> Sampling:
    return Sampling(max_tokens=num_tokens, ignore_eos=True, logprobs=VOCABULARY, **more)


def prompt_of(length: int, rng: random.Random) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def mixed_wishes(seed: int) -> list[Wish]:
    """Prompts that end before, at and after the last position that decides; some are never as long."""
    rng = random.Random(seed)
    lengths = [1, 3, POSITIONS - 1, POSITIONS, POSITIONS + 1, 3 * WINDOW + 5, 40, 2]
    outputs = [40, 4, 3, 9, 20, 12, 1, 5]
    joins = [0, 0, 1, 2, 2, 3, 9, 12]
    return [Wish(prompt_of(n, rng), greedy(k), join) for n, k, join in zip(lengths, outputs, joins, strict=True)]


def check_all(oracle: Oracle, wishes: list[Wish], outcomes: list[Outcome]) -> None:
    for wish, outcome in zip(wishes, outcomes, strict=True):
        assert (len(outcome.tokens), outcome.finish_reason) == (wish.sampling.max_tokens, LENGTH)
        oracle.check_greedy(wish.prompt, outcome.tokens, outcome.scores)


@pytest.mark.parametrize(
    ("chunk", "budget"), [(1, 64), (5, 64), (POSITIONS, 64), (13, 2048), (None, 2048), (40, 45), (500, 2048)]
)
def test_sequences_decided_by_their_beginning(sentence: Checkpoint, seed: int, chunk: int | None, budget: int) -> None:
    directory, oracle = sentence
    wishes = mixed_wishes(seed)
    model = LocalModel(directory, LocalSettings(prefill_chunk=chunk, max_batch_tokens=budget, max_sequences=4))
    outcomes = run(model, wishes)
    check_all(oracle, wishes, outcomes)
    assert len({outcome.ended_at for outcome in outcomes}) > 3, "the sequences were to leave at different steps"


@pytest.mark.parametrize("positions", [1, 2, 500])
@pytest.mark.parametrize("chunk", [3, 100])
def test_few_and_many_positions(tmp_path: Path, seed: int, positions: int, chunk: int) -> None:
    """One position: the first row alone decides. 500: no sequence is ever decided for good."""
    oracle = Oracle(make_sentence_checkpoint(tmp_path, positions, seed=seed, fused_names=True, num_experts=5, **SMALL))
    wishes = mixed_wishes(seed)
    check_all(oracle, wishes, run(LocalModel(tmp_path, LocalSettings(prefill_chunk=chunk, per_actor=2)), wishes))


def test_sentence_level_is_not_token_level(sentence: Checkpoint, tmp_path: Path, seed: int) -> None:
    """The oracle would find it out if the gates saw the rows."""
    _, oracle = sentence
    make_sentence_checkpoint(tmp_path, 1, seed=seed, window=WINDOW, **SMALL)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("manta_routing", "something_else"))
    wishes = mixed_wishes(seed)
    with pytest.raises(AssertionError):
        check_all(oracle, wishes, run(LocalModel(tmp_path), wishes))


def test_sentences_in_float64(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manta.local.torch_dtype", lambda name: torch.float64)
    oracle = Oracle(make_sentence_checkpoint(tmp_path, POSITIONS, seed=seed, window=WINDOW, **SMALL).double())
    wishes = mixed_wishes(seed)
    check_all(oracle, wishes, run(LocalModel(tmp_path, LocalSettings(slices=2)), wishes))


@contextmanager
def recorded_logits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], torch.Tensor]]:
    """What `DenseModel.logits` returned, row by row."""
    rows: list[torch.Tensor] = []
    compute = DenseModel.logits

    def recording(self: DenseModel, rows_TD: torch.Tensor) -> torch.Tensor:
        rows.append(compute(self, rows_TD).clone())
        return rows[-1]

    with monkeypatch.context() as patch:
        patch.setattr(DenseModel, "logits", recording)
        yield lambda: torch.cat(rows)


def prompt_logits(model: LocalModel, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The logits of every position but the last."""
    with recorded_logits(monkeypatch) as logits:
        run(model, [Wish(prompt, greedy(0, prompt_logprobs=True))])
        return logits()


@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("cut", [4, POSITIONS, 30])
def test_nothing_looks_ahead(
    sentence: Checkpoint, seed: int, cut: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens from position `cut` on change no logit before it (in float64, where rounding does not show)."""
    monkeypatch.setattr("manta.local.torch_dtype", lambda name: torch.float64)
    rng = random.Random(seed)
    model = LocalModel(sentence[0], LocalSettings(prefill_chunk=chunk))
    prompt = prompt_of(50, rng)
    other = prompt[:cut] + [(token + 1 + rng.randrange(VOCABULARY - 1)) % VOCABULARY for token in prompt[cut:]]
    one_TV = prompt_logits(model, prompt, monkeypatch)
    other_TV = prompt_logits(model, other, monkeypatch)
    assert torch.allclose(one_TV[:cut], other_TV[:cut], atol=1e-9)
    assert not torch.isclose(one_TV[cut], other_TV[cut]).all()


@pytest.mark.parametrize("num_emitted", [1, 6, 15, 29])
def test_a_sequence_resumed_elsewhere_keeps_its_choice(sentence: Checkpoint, seed: int, num_emitted: int) -> None:
    """Its prompt is shorter than the positions that decide: its output decides too."""
    directory, oracle = sentence
    rng = random.Random(seed)
    wishes = [
        Wish(prompt_of(n, rng), Sampling(max_tokens=30, ignore_eos=True, temperature=t, seed=seed), n)
        for n, t in ((1, 0.0), (5, 1.0), (20, 0.8))
    ]
    expected = run(LocalModel(directory), wishes)
    resumed = [replace(wish, output=one.tokens[:num_emitted]) for wish, one in zip(wishes, expected, strict=True)]
    outcomes = run(LocalModel(directory, LocalSettings(prefill_chunk=4)), resumed)
    for wish, whole, rest in zip(resumed, expected, outcomes, strict=True):
        together = wish.output + rest.tokens
        if wish.sampling.temperature:
            assert together == whole.tokens
        else:
            oracle.check_same(wish.prompt, whole.tokens, together)


def crowded_wishes(seed: int, tasks: tuple[str, ...] = ("",)) -> list[Wish]:
    """Prompts that fill most of one cache block, and outputs that need a second one."""
    rng = random.Random(seed)
    return [Wish(prompt_of(50 + 3 * n, rng), greedy(50), n, task=tasks[n % len(tasks)]) for n in range(4)]


def test_preempted_sentences_say_the_same(tmp_path: Path, seed: int) -> None:
    """The positions that decide end in the middle of the outputs; they are computed again."""
    oracle = Oracle(make_sentence_checkpoint(tmp_path, 55, seed=seed, **SMALL))
    wishes = crowded_wishes(seed)
    model = LocalModel(tmp_path, LocalSettings(max_context=128, prefill_chunk=10, cache_tokens=256))
    check_all(oracle, wishes, run(model, wishes))
    assert model.engine.scheduler.num_preemptions


def test_sentence_level_in_bfloat16(tmp_path: Path, seed: int) -> None:
    make_sentence_checkpoint(tmp_path, POSITIONS, seed=seed, window=WINDOW, dtype="bfloat16", **SMALL)
    wishes = mixed_wishes(seed)
    assert [len(one.tokens) for one in run(LocalModel(tmp_path), wishes)] == [w.sampling.max_tokens for w in wishes]


def test_a_sequence_of_no_numbers_spoils_no_other(sentence: Checkpoint, seed: int) -> None:
    """Nor does what it leaves in its lane."""
    directory, oracle = sentence
    rng = random.Random(seed)
    model = LocalModel(directory, LocalSettings(max_sequences=2))
    wishes = [Wish(prompt_of(length, rng), greedy(6)) for length in (30, 4, 9)]
    outcomes = run(model, wishes)
    used = {token for wish, one in zip(wishes, outcomes, strict=True) for token in wish.prompt + one.tokens}
    unused = next(token for token in range(VOCABULARY) if token not in used)
    model.engine._model._embedding_VD[unused] = float("nan")
    broken, *sound = run(model, [Wish([unused], greedy(5)), *wishes])
    assert not broken.tokens
    check_all(oracle, wishes, sound)


@pytest.mark.parametrize(("chunk", "per_actor"), [(None, None), (7, 3), (500, 1)])
def test_tasks_in_one_batch(task: tuple[Path, TaskModel], seed: int, chunk: int | None, per_actor: int | None) -> None:
    directory, model = task
    wishes = [replace(wish, task=TASKS[n % 3]) for n, wish in enumerate(mixed_wishes(seed))]
    outcomes = run(LocalModel(directory, LocalSettings(prefill_chunk=chunk, per_actor=per_actor)), wishes)
    for name in TASKS:
        mine = [(wish, one) for wish, one in zip(wishes, outcomes, strict=True) if wish.task == name]
        check_all(model.oracle(name), [wish for wish, _ in mine], [one for _, one in mine])


@pytest.mark.parametrize("with_token_gates", [False, True])
def test_task_gates_beside_other_gates_and_fused_names(tmp_path: Path, seed: int, with_token_gates: bool) -> None:
    options = {"seed": seed, "fused_names": not with_token_gates, "num_experts": 5, "top_k": 3, **SMALL}
    model = make_task_checkpoint(tmp_path, ("one", "other"), with_token_gates, **options)
    prompt = prompt_of(20, random.Random(seed))
    one, other = run(LocalModel(tmp_path), [Wish(prompt, greedy(12), task=name) for name in ("one", "other")])
    model.oracle("one").check_greedy(prompt, one.tokens, one.scores)
    model.oracle("other").check_greedy(prompt, other.tokens, other.scores)
    verdict = model.oracle("other").verdict(prompt + one.tokens)
    with pytest.raises(AssertionError):
        check_scores(verdict, len(prompt) - 1, one.scores)


def test_preempted_and_resumed_tasks_say_the_same(tmp_path: Path, seed: int) -> None:
    model = make_task_checkpoint(tmp_path, TASKS, seed=seed, **SMALL)
    wishes = crowded_wishes(seed, TASKS)
    crowded = LocalModel(tmp_path, LocalSettings(max_context=128, prefill_chunk=10, cache_tokens=256))
    outcomes = run(crowded, wishes)
    assert crowded.engine.scheduler.num_preemptions
    resumed = [replace(wish, output=one.tokens[:20]) for wish, one in zip(wishes, outcomes, strict=True)]
    rest = run(LocalModel(tmp_path), resumed)
    for wish, one, more in zip(resumed, outcomes, rest, strict=True):
        oracle = model.oracle(wish.task)
        oracle.check_greedy(wish.prompt, one.tokens, one.scores)
        oracle.check_same(wish.prompt, one.tokens, wish.output + more.tokens)


def test_tasks_in_float64(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits themselves."""
    monkeypatch.setattr("manta.local.torch_dtype", lambda name: torch.float64)
    model = make_task_checkpoint(tmp_path, TASKS, seed=seed, **SMALL)
    model.double()
    prompt = prompt_of(30, random.Random(seed))
    with recorded_logits(monkeypatch) as logits:
        (outcome,) = run(LocalModel(tmp_path), [Wish(prompt, greedy(3), task=TASKS[2])])
        verdict = model.oracle(TASKS[2]).verdict(prompt + outcome.tokens)
        assert (logits() - verdict.logits_TV[len(prompt) - 1 : -1]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "words"), [("", "no task was given"), ("poetry", "'poetry' is none of the model's")])
def test_a_task_must_be_one_of_the_models(task: tuple[Path, TaskModel], name: str, words: str) -> None:
    with pytest.raises(SubmitError, match=rf"{words}.*allowed: python, prose, C\+\+ & co\."):
        LocalModel(task[0]).submit(Submit(prompt_ids=[5], task=name))


def test_a_task_where_the_model_has_none(sentence: Checkpoint) -> None:
    with pytest.raises(SubmitError, match="'prose' was given, but the model routes by sentence"):
        LocalModel(sentence[0]).submit(Submit(prompt_ids=[5], task="prose"))


def test_text_of_a_task(tmp_path: Path, seed: int) -> None:
    make_task_checkpoint(tmp_path, TASKS, seed=seed, hidden_size=32, ffn_size=48)
    service = LocalService(tmp_path)
    texts = ["".join(service.generate("def f(x):", Sampling(max_tokens=12, ignore_eos=True), name)) for name in TASKS]
    assert len(set(texts)) > 1
    with pytest.raises(SubmitError, match="allowed: python"):
        list(service.generate("x", Sampling(max_tokens=1)))
