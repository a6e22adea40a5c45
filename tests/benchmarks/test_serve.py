"""The benchmark's command line, end to end against real servers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.serve import main, prompts_per_level
from benchmarks.workload import WorkloadError, load_tokenizer, prompt_source
from tests.benchmarks.fake_server import FakeServer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet))
    bpe.save(str(folder / "tokenizer.json"))
    return folder


def arguments(folder: Path, *urls: str) -> list[str]:
    sizes = ["--input-len", "6", "--output-len", "4", "--num-prompts", "4", "--warmup", "1"]
    return [*urls, "--tokenizer", str(folder), "--concurrency", "1,2", *sizes]


def test_two_servers_take_turns_and_get_the_same_prompts(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, out = FakeServer(), FakeServer(), tmp_path / "out.json"
    with first as url, second as other:
        words = arguments(tokenizer_folder, f"manta={url}", f"peer={other}")
        assert main([*words, "--rounds", "2", "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [(r["target"], r["concurrency"]) for r in results] == [
        ("manta", 1),
        ("peer", 1),
        ("manta", 2),
        ("peer", 2),
    ]
    assert all(r["num_completed"] == 8 and r["num_output_tokens"] == 32 for r in results)
    assert all(len(r["round_tokens_per_s"]) == 2 for r in results)
    sent = [sorted(body["prompt"] for body in server.bodies) for server in (first, second)]
    assert sent[0] == sent[1]
    assert len({tuple(prompt) for prompt in sent[0]}) == len(sent[0]) == 1 + 2 * 2 * 4
    printed = capsys.readouterr().out
    assert "manta" in printed
    assert "1.00x" in printed


def test_failures_are_shown_and_change_the_exit_status(
    tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(fault="refuse") as url:
        assert main(arguments(tokenizer_folder, url)) == 1
    assert "2 failed: HTTP 429: the queue is full" in capsys.readouterr().out


def test_prompts_as_text(tokenizer_folder: Path) -> None:
    fake = FakeServer()
    with fake as url:
        assert main([*arguments(tokenizer_folder, url), "--prompt-text"]) == 0
    assert all(isinstance(body["prompt"], str) for body in fake.bodies)


def test_prompts_repeat_for_a_seed_and_hold_no_special_token(tokenizer_folder: Path) -> None:
    source = prompt_source(tokenizer_folder, 200, 7, as_text=False)
    assert source.prompts("8/0", 3) == source.prompts("8/0", 3)
    assert source.prompts("8/0", 3) != source.prompts("8/1", 3)
    assert all(isinstance(prompt, list) and min(prompt) >= 2 for prompt in source.prompts("x", 20))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--concurrency", "0"], "--concurrency"),
        (["--concurrency", "1,x"], "--concurrency"),
        (["--output-len", "-3"], "--output-len"),
        (["--transformers", "d", "--prompt-text"], "--prompt-text"),
        (["--json", "no/such/folder/out.json"], "folder does not exist"),
    ],
)
def test_bad_arguments_are_named(
    tokenizer_folder: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments(tokenizer_folder, "http://127.0.0.1:1"), *extra])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_to_measure_and_no_tokenizer_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (([], "at least one URL"), (["http://127.0.0.1:1"], "--tokenizer DIR is needed")):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


def test_an_unreachable_server_and_equal_names_end_with_2(
    tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as url:
        assert main(arguments(tokenizer_folder, url, url)) == 2
        assert "write name=URL" in capsys.readouterr().err
    assert main(arguments(tokenizer_folder, url)) == 2
    assert "cannot reach" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_or_with_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkloadError, match="is not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_number_of_prompts_per_level() -> None:
    assert prompts_per_level([1, 8, 32], None) == [8, 32, 128]
    assert prompts_per_level([1, 8], [5]) == [5, 5]
    assert prompts_per_level([1, 8], [5, 6]) == [5, 6]
    with pytest.raises(WorkloadError, match="3 numbers for 2 levels"):
        prompts_per_level([1, 8], [1, 2, 3])
