"""The Ray-free path as its users see it: settings, progress, errors, text."""

import itertools
from pathlib import Path

import pytest

from attention.admission import SubmitError
from attention.dense import DenseModel
from manta.local import LocalModel, LocalService, LocalSettings, check_device
from model.errors import ModelError
from protos.generation_pb2 import LENGTH, STOP, Sampling, SequenceOutput, Submit
from tests.local_driver import Wish, run
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint, make_tokenizer
from transport.errors import CallError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer and a window of 16."""
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, hidden_size=32, ffn_size=48, window=16, num_experts=5, max_context=64, seed=3)
    return path


def greedy(num_tokens: int) -> Sampling:
    return Sampling(max_tokens=num_tokens, ignore_eos=True)


def test_generate_yields_tokens_as_they_come(directory: Path) -> None:
    model = LocalModel(directory)
    prompt = [5, 6, 7]
    (expected,) = run(model, [Wish(prompt, greedy(6))])
    outputs = list(model.generate(Submit(prompt_ids=prompt, sampling=greedy(6))))
    assert [list(output.token_ids) for output in outputs] == [[token] for token in expected.tokens]
    assert [output.finish_reason for output in outputs] == [0] * 5 + [LENGTH]


def test_generate_that_is_left_early_frees_its_sequence(directory: Path) -> None:
    model = LocalModel(directory)
    outputs = model.generate(Submit(prompt_ids=[5, 6, 7], sampling=greedy(50)))
    assert len(list(itertools.islice(outputs, 3))) == 3
    outputs.close()
    model.engine.check_integrity()
    assert not model.engine.has_work


def test_generate_beside_other_sequences(directory: Path) -> None:
    model = LocalModel(directory)
    model.submit(Submit(prompt_ids=[9] * 20, sampling=greedy(30)))
    assert len(list(model.generate(Submit(prompt_ids=[5, 6, 7], sampling=greedy(4))))) == 4
    assert model.engine.has_work


def test_generate_in_turns(directory: Path) -> None:
    """Two that are read in turns get what each gets alone."""
    submits = [Submit(prompt_ids=[5, 6, 7], sampling=greedy(6)), Submit(prompt_ids=[8, 9], sampling=greedy(9))]
    alone = [[list(output.token_ids) for output in LocalModel(directory).generate(submit)] for submit in submits]
    model = LocalModel(directory)
    readers = [model.generate(submit) for submit in submits]
    together: list[list[list[int]]] = [[], []]
    for index in (0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1):
        together[index].append(list(next(readers[index]).token_ids))
    assert together == alone
    assert all(next(reader, None) is None for reader in readers)
    assert not model.engine.has_work


def test_generate_tells_of_a_failure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = DenseModel.logits
    monkeypatch.setattr(DenseModel, "logits", lambda self, rows_TD: logits(self, rows_TD) * float("nan"))
    with pytest.raises(CallError, match="NaN") as failed:
        list(LocalModel(directory).generate(Submit(prompt_ids=[5], sampling=greedy(4))))
    assert failed.value.code == "internal"


def test_refused_sequences(directory: Path) -> None:
    model = LocalModel(directory, LocalSettings(max_context=10))
    for prompt, code in (([], "invalid_request"), ([5] * 11, "context_length")):
        with pytest.raises(SubmitError) as refused:
            model.submit(Submit(prompt_ids=prompt, sampling=greedy(1)))
        assert refused.value.code == code
    assert not model.engine.has_work


def test_a_window_of_its_own(directory: Path, tmp_path: Path) -> None:
    """None turns the checkpoint's window off, a number replaces it: as transformers does with that window."""
    prompt = [5 + 7 * index % 300 for index in range(40)]
    for window in (None, 7):
        path = tmp_path / str(window)
        oracle = Oracle(
            make_checkpoint(path, hidden_size=32, ffn_size=48, window=window, num_experts=5, max_context=64, seed=3)
        )
        (outcome,) = run(LocalModel(directory, LocalSettings(window=window)), [Wish(prompt, greedy(20))])
        oracle.check_greedy(prompt, outcome.tokens)
    assert LocalModel(directory).config.window == 16


def test_bfloat16_runs(directory: Path) -> None:
    (outcome,) = run(LocalModel(directory, LocalSettings(dtype="bfloat16", slices=3)), [Wish([5] * 30, greedy(20))])
    assert len(outcome.tokens) == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LocalSettings(dtype="float16"), "float16.*float32, bfloat16"),
        (LocalSettings(slices=49), "48 FFN columns cannot be cut in 49 slices"),
        (LocalSettings(cache_tokens=10), "raise attention.cache_tokens"),
    ],
)
def test_settings_that_do_not_fit(directory: Path, settings: LocalSettings, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalModel(directory, settings)


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        LocalModel(tmp_path)


def test_progress_grows_to_the_end(directory: Path) -> None:
    seen: list[tuple[str, float]] = []
    settings = LocalSettings(per_actor=2, slices=2)
    LocalModel(directory, settings, on_progress=lambda what, fraction: seen.append((what, fraction)))
    assert [what for what, _ in itertools.groupby(seen, key=lambda item: item[0])] == ["experts", "attention"]
    fractions = [fraction for what, fraction in seen if what == "experts"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == seen[-1][1] == 1.0


def merged(outputs: list[SequenceOutput]) -> SequenceOutput:
    whole = SequenceOutput()
    for output in outputs:
        whole.MergeFrom(output)
    return whole


def test_text_in_text_out(directory: Path) -> None:
    """Pieces, put together, are what the tokenizer makes of the tokens; the prompt's are left out."""
    tokenizer = make_tokenizer(320)
    prompt = "def f(x):"
    ids = tokenizer(prompt)["input_ids"]
    sampling = Sampling(max_tokens=20, logit_bias=dict.fromkeys(range(3), -100.0))
    whole = merged(list(LocalModel(directory).generate(Submit(prompt_ids=ids, sampling=sampling))))
    text = "".join(LocalService(directory).generate(prompt, sampling))
    assert text == tokenizer.decode(ids + list(whole.token_ids), skip_special_tokens=True)[len(prompt) :]


def test_the_token_that_ends_a_text_is_not_part_of_it(directory: Path) -> None:
    end = Sampling(logit_bias={1: 100.0})
    assert "".join(LocalService(directory).generate("x", end)) == ""
    whole = merged(list(LocalModel(directory).generate(Submit(prompt_ids=[5], sampling=end))))
    assert (list(whole.token_ids), whole.finish_reason) == ([1], STOP)


def test_a_text_that_is_too_long(directory: Path) -> None:
    with pytest.raises(SubmitError, match="must fit 64"):
        list(LocalService(directory).generate("7" * 70, greedy(1)))


def test_a_context_beyond_the_memory_takes_no_more_than_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.json may say a billion positions; a text of twenty needs the cache of twenty."""
    make_checkpoint(tmp_path, hidden_size=32, ffn_size=48, num_experts=4, max_context=10**9, seed=3)
    with pytest.raises(ValueError, match="lower model.max_context"):
        LocalModel(tmp_path)
    assert len("".join(LocalService(tmp_path).generate("x", greedy(12)))) > 0
    monkeypatch.setattr("attention.sizing._available_host_bytes", lambda: 1 << 20)
    with pytest.raises(ValueError, match=r"make \d+ positions.*room for.*--max-tokens") as caught:
        LocalService(tmp_path).generate("x", greedy(100_000))
    for name in ("cache_tokens", "max_context", "window"):
        assert name not in str(caught.value), "`manta generate` has no such setting"


def test_a_longer_request_gets_a_larger_cache(directory: Path) -> None:
    service = LocalService(directory)
    short = "".join(service.generate("x", greedy(4)))
    assert "".join(service.generate("x", greedy(30))).startswith(short[:1])
    assert "".join(service.generate("x", greedy(4))) == short


def test_no_model_rather_than_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "0123abc").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"there is no config\.json\. Give a local directory"):
        LocalService(tmp_path)
    (tmp_path / "snapshots" / "0123abc" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"there is no config\.json\. This is the hub's cache.*snapshots/0123abc"):
        LocalService(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, hidden_size=32, ffn_size=48, seed=3, with_tokenizer=False)
    with pytest.raises(ValueError, match=r"add the model's tokenizer\.json"):
        LocalService(tmp_path)


@pytest.mark.parametrize(
    ("has_one", "device", "expected"),
    [(True, "cpu", "--device cuda uses it"), (True, "cuda", None), (False, "cpu", None)],
)
def test_a_gpu_that_is_not_used_is_named(
    has_one: bool, device: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_one)
    notice = check_device(device)
    assert notice is None if expected is None else expected in str(notice)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device: cuda was given; torch finds no CUDA device here"):
        check_device("cuda")
