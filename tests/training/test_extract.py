"""What `manta extract` writes computes what the whole model computes for the task, by transformers and by Manta.

T positions, V vocabulary, D model dim, F expert hidden dim, E experts, K chosen experts, S tasks.
"""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralForCausalLM
from typer.testing import CliRunner

from checkpoint.errors import MissingTensor, ShapeMismatch, TruncatedFile
from checkpoint.reader import CheckpointReader
from manta.cli import app
from manta.local import LocalModel, LocalService
from model.config import read_config
from model.errors import ConfigError
from model.routing import BY_TOKEN
from protos.generation_pb2 import Sampling
from tests.local_driver import Wish, run
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint
from tests.routed_checkpoint import TaskModel, make_sentence_checkpoint, make_task_checkpoint
from training.extract import extract, extracted

VOCABULARY = 97
NUM_EXPERTS = 6
TASKS = ("python", "prose", "C++ & co.")
SMALL = {"hidden_size": 32, "ffn_size": 48, "num_experts": NUM_EXPERTS, "vocab_size": VOCABULARY, "window": 16}
WEIGHTS = "model.safetensors"
FIXED = 5  # a seed for bfloat16, which may see two gate logits as equal: no two of these are


@dataclass(frozen=True)
class Whole:
    """A model that routes by task, and beside it where to write what is extracted."""

    directory: Path
    model: TaskModel
    out: Path
    top_k: int

    def chosen(self, layer: int, task: str) -> tuple[list[int], list[float]]:
        """The experts of a task, best first, and their weights, in plain words."""
        logits = self.model.tables[layer][TASKS.index(task)].tolist()
        best = sorted(range(NUM_EXPERTS), key=lambda expert: -logits[expert])[: self.top_k]
        shares = torch.tensor([logits[expert] for expert in best], dtype=torch.float64).exp()
        return best, (shares / shares.sum()).tolist()


Make = Callable[..., Whole]


@pytest.fixture
def make(tmp_path: Path, seed: int) -> Make:
    def made(top_k: int = 2, **options: Any) -> Whole:
        options = {"with_tokenizer": False, **SMALL, "top_k": top_k, "seed": seed, **options}
        directory = tmp_path / "whole"
        return Whole(directory, make_task_checkpoint(directory, TASKS, **options), tmp_path / "out", top_k)

    return made


def some_ids(seed: int, length: int = 40) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def plain(directory: Path, dtype: torch.dtype = torch.float32) -> MixtralForCausalLM:
    """A directory as transformers loads it; every tensor in it must have its place."""
    model, found = MixtralForCausalLM.from_pretrained(
        directory, dtype=dtype, experts_implementation="eager", output_loading_info=True
    )
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


def assert_close(logits_TV: Tensor, expected_TV: Tensor, relative: float) -> None:
    wrong = (logits_TV - expected_TV).abs().max() / expected_TV.abs().max()
    assert wrong <= relative, f"the logits are off by {wrong:.2e} of the largest"


def num_parameters(directory: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(directory / WEIGHTS).values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("fused_names", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_logits_are_the_whole_models(
    make: Make, seed: int, top_k: int, fused_names: bool, tie: bool, task: str
) -> None:
    whole = make(top_k, fused_names=fused_names, tie=tie)
    extract(whole.directory, whole.out, task)
    ids = some_ids(seed)
    expected_TV = whole.model.oracle(task).verdict(ids).logits_TV
    assert_close(Oracle(plain(whole.out)).verdict(ids).logits_TV, expected_TV, 1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_in_float64_only_the_rounding_of_w2_is_left(make: Make, seed: int, top_k: int) -> None:
    whole = make(top_k)
    extract(whole.directory, whole.out, TASKS[0])
    whole.model.double()
    ids = some_ids(seed)
    expected_TV = whole.model.oracle(TASKS[0]).verdict(ids).logits_TV
    relative = 1e-12 if top_k == 1 else 1e-6
    assert_close(Oracle(plain(whole.out, torch.float64)).verdict(ids).logits_TV, expected_TV, relative)


def test_the_logits_of_another_task_are_others(make: Make, seed: int) -> None:
    """The oracle would find it out if the wrong experts were kept."""
    whole = make()
    extract(whole.directory, whole.out, TASKS[0])
    ids = some_ids(seed)
    with pytest.raises(AssertionError, match="the logits are off"):
        assert_close(
            Oracle(plain(whole.out)).verdict(ids).logits_TV, whole.model.oracle(TASKS[1]).verdict(ids).logits_TV, 1e-3
        )


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_manta_computes_the_same_from_either(make: Make, seed: int, top_k: int) -> None:
    whole = make(top_k)
    extract(whole.directory, whole.out, TASKS[1])
    prompt, sampling = some_ids(seed), Sampling(max_tokens=8, ignore_eos=True, logprobs=VOCABULARY)
    (one,) = run(LocalModel(whole.directory), [Wish(prompt, sampling, task=TASKS[1])])
    (other,) = run(LocalModel(whole.out), [Wish(prompt, sampling)])
    assert len(one.scores) == len(other.scores) == 8
    Oracle(plain(whole.out)).check_greedy(prompt, one.tokens, one.scores)
    whole.model.oracle(TASKS[1]).check_greedy(prompt, other.tokens, other.scores)


@pytest.mark.parametrize("fused_names", [False, True])
def test_what_is_written(make: Make, fused_names: bool) -> None:
    whole = make(3, fused_names=fused_names)
    before, after = extract(whole.directory, whole.out, TASKS[2])
    assert (before.num_experts, after.num_experts, after.top_k, after.routing) == (NUM_EXPERTS, 3, 3, BY_TOKEN)
    assert read_config(whole.out) == after
    assert "manta_routing" not in (whole.out / "config.json").read_text()
    found = load_file(whole.out / WEIGHTS)
    for layer, block in enumerate(whole.model.layers):
        prefix = f"model.layers.{layer}.block_sparse_moe"
        assert torch.equal(found[f"{prefix}.gate.weight"], torch.zeros(3, 32))
        experts, weights = whole.chosen(layer, TASKS[2])
        for place, (expert, weight) in enumerate(zip(experts, weights, strict=True)):
            w1_FD, w2_DF, w3_FD = (found[f"{prefix}.experts.{place}.w{n}.weight"] for n in (1, 2, 3))
            assert torch.equal(torch.cat([w1_FD, w3_FD]), block.mlp.experts.gate_up_proj[expert])
            torch.testing.assert_close(w2_DF, block.mlp.experts.down_proj[expert] * 3 * weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("top_k", "tie"), [(1, False), (2, True), (3, False)])
def test_the_parameters_of_the_other_experts_and_the_gates_are_gone(make: Make, top_k: int, tie: bool) -> None:
    whole = make(top_k, tie=tie)
    extract(whole.directory, whole.out, TASKS[0])
    expert, layers = 3 * 32 * 48, 2
    tables, gates = len(TASKS) * NUM_EXPERTS, top_k * 32
    gone = layers * ((NUM_EXPERTS - top_k) * expert + tables - gates)
    assert num_parameters(whole.out) == num_parameters(whole.directory) - gone


def test_with_one_expert_no_bit_changes(make: Make) -> None:
    whole = make(1, dtype="bfloat16", seed=FIXED)
    extract(whole.directory, whole.out, TASKS[0])
    found = load_file(whole.out / WEIGHTS)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    (expert,), _ = whole.chosen(0, TASKS[0])
    down_EDF = whole.model.layers[0].mlp.experts.down_proj
    assert torch.equal(found["model.layers.0.block_sparse_moe.experts.0.w2.weight"], down_EDF[expert])


def test_w2_in_bfloat16_is_rounded_once(make: Make) -> None:
    whole = make(3, dtype="bfloat16", seed=FIXED)
    extract(whole.directory, whole.out, TASKS[0])
    extract(whole.directory, exact := whole.out.with_name("exact"), TASKS[0], "float32")
    rounded, wanted = load_file(whole.out / WEIGHTS), load_file(exact / WEIGHTS)
    assert read_config(exact).dtype == "float32"
    for name, tensor in rounded.items():
        torch.testing.assert_close(tensor.float(), wanted[name], rtol=2**-8 if ".w2." in name else 0, atol=0)


def test_the_experts_do_not_depend_on_what_is_stored(make: Make) -> None:
    """bfloat16 sees the best two logits of both tasks as equal."""
    whole = make(1)
    tensors = load_file(whole.directory / WEIGHTS)
    table_SE = torch.tensor([[0, 1, 1.001, 0, 0, 0], [0, 1.001, 1, 0, 0, 0], [0] * 6])
    name = "model.layers.0.block_sparse_moe.task_gate.weight"
    save_file(tensors | {name: table_SE}, whole.directory / WEIGHTS)
    for task, expert in ((TASKS[0], 2), (TASKS[1], 1)):
        out = whole.out / task
        extract(whole.directory, out, task, "bfloat16")
        w1_FD = load_file(out / WEIGHTS)["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
        assert torch.equal(w1_FD, tensors[f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"].bfloat16())


def test_the_logits_in_bfloat16_are_as_near_as_bfloat16_is(make: Make, seed: int) -> None:
    whole = make(3, dtype="bfloat16", seed=FIXED)
    extract(whole.directory, whole.out, TASKS[0])
    ids = some_ids(seed)
    whole.model.double()
    whole.model.tables = [table_SE.bfloat16().double() for table_SE in whole.model.tables]
    logits_TV = Oracle(plain(whole.out, torch.float64)).verdict(ids).logits_TV
    assert_close(logits_TV, whole.model.oracle(TASKS[0]).verdict(ids).logits_TV, 0.02)


def test_each_tensor_owns_its_memory_alone(make: Make) -> None:
    """So that none keeps the memory of others, which are not in the same file, alive."""
    whole = make(2, fused_names=True)
    with CheckpointReader(whole.directory) as reader:
        for name, tensor in extracted(reader, read_config(whole.directory), 0, torch.float32):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_the_command_and_text_from_what_it_wrote(make: Make) -> None:
    whole = make(2, with_tokenizer=True, vocab_size=320)
    done = command(whole, TASKS[2])
    assert (done.exit_code, done.output.count("manta serve")) == (0, 1)
    assert "Wrote 2 of 6 experts" in done.output
    sampling = Sampling(max_tokens=12, ignore_eos=True)
    expected = "".join(LocalService(whole.directory).generate("def f(x):", sampling, TASKS[2]))
    assert "".join(LocalService(whole.out).generate("def f(x):", sampling)) == expected
    generated = CliRunner().invoke(app, ["generate", str(whole.out), "def f(x):", "--max-tokens", "3"])
    assert generated.exit_code == 0


def test_the_tokenizers_files_come_along(make: Make) -> None:
    whole = make(with_tokenizer=True, vocab_size=320)
    (whole.directory / "vocab.json").write_text("{}")
    (whole.directory / "merges.txt").write_text("a b")
    extract(whole.directory, whole.out, TASKS[0])
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")
    for name in names:
        assert (whole.out / name).read_bytes() == (whole.directory / name).read_bytes()


def command(whole: Whole, task: str, *more: str) -> Any:
    return CliRunner().invoke(app, ["extract", "--task", task, str(whole.directory), str(whole.out), *more])


def test_an_unknown_task(make: Make) -> None:
    whole = make()
    done = command(whole, "poetry")
    assert done.exit_code == 2
    assert "'poetry' is none of the model's; allowed: python, prose, C++ & co." in done.output
    assert not whole.out.exists()


def test_a_model_that_routes_otherwise(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path / "token", seed=seed, with_tokenizer=False)
    with pytest.raises(ConfigError, match=r"config\.json: the model routes by token.*Give a model that routes by task"):
        extract(tmp_path / "token", tmp_path / "out", "python")
    make_sentence_checkpoint(tmp_path / "sentence", 4, seed=seed, with_tokenizer=False)
    with pytest.raises(ConfigError, match="the model routes by sentence"):
        extract(tmp_path / "sentence", tmp_path / "out", "python")
    assert not (tmp_path / "out").exists()


def test_what_was_extracted_has_no_tasks_left(make: Make) -> None:
    whole = make()
    extract(whole.directory, whole.out, TASKS[0])
    with pytest.raises(ConfigError, match="routes by token"):
        extract(whole.out, whole.out.with_name("again"), TASKS[0])


def test_a_directory_that_holds_something_is_left_alone(make: Make) -> None:
    whole = make()
    whole.out.mkdir()
    (whole.out / "mine.txt").write_text("mine")
    done = command(whole, TASKS[0])
    assert done.exit_code == 1
    assert "is not empty" in done.output
    assert [path.name for path in whole.out.iterdir()] == ["mine.txt"]


def test_the_current_folder_is_not_replaced_under_the_user(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make()
    whole.out.mkdir()
    monkeypatch.chdir(whole.out)
    for out in (Path(), whole.out):
        with pytest.raises(FileExistsError, match="is the current folder; give a new directory"):
            extract(whole.directory, out, TASKS[0])


def test_a_link_stays_and_leads_to_what_is_written(make: Make) -> None:
    whole = make()
    disk = whole.out.with_name("another disk")
    for out in (disk / "empty", disk / "new"):
        disk.mkdir(exist_ok=True)
        if out.name == "empty":
            out.mkdir()
        whole.out.unlink(missing_ok=True)
        whole.out.symlink_to(out)
        extract(whole.directory, whole.out, TASKS[0])
        assert whole.out.is_symlink()
        assert {"config.json", WEIGHTS} <= {path.name for path in out.iterdir()}
    assert sorted(path.name for path in disk.iterdir()) == ["empty", "new"]


def test_a_mounted_volume_is_told_before_anything_is_written(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make()
    whole.out.mkdir()

    def rename(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))  # as for what something is mounted on

    monkeypatch.setattr("os.rename", rename)
    monkeypatch.setattr("checkpoint.writer.save_file", lambda *given, **named: pytest.fail("something was written"))
    with pytest.raises(FileExistsError, match=r"cannot be replaced \(.*busy\); .*mounted volume one in it"):
        extract(whole.directory, whole.out, TASKS[0])
    assert whole.out.is_dir()


def test_a_file_is_not_replaced(make: Make) -> None:
    whole = make()
    whole.out.write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; give a new directory"):
        extract(whole.directory, whole.out, TASKS[0])
    assert whole.out.read_text() == "mine"


def test_damaged_weights(make: Make) -> None:
    """Each is told by the reader's own error, and nothing is left behind."""
    whole = make(NUM_EXPERTS)  # every expert is read
    weights = whole.directory / WEIGHTS
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_refused(whole, TruncatedFile, WEIGHTS)
    name = "model.layers.1.block_sparse_moe.experts.4.w2.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    assert_refused(whole, MissingTensor, name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, weights)
    assert_refused(whole, ShapeMismatch, name)


def assert_refused(whole: Whole, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        extract(whole.directory, whole.out, TASKS[0])
    assert sorted(path.name for path in whole.out.parent.iterdir()) == [whole.directory.name]


@pytest.mark.parametrize("stored", ["another", "alone", "twice"])
def test_a_whole_model_that_says_it_is_tied(make: Make, seed: int, stored: str) -> None:
    """What is extracted computes as the whole model does, whichever of embedding and LM head is stored."""
    whole = make(tie=True)
    tensors = load_file(whole.directory / WEIGHTS)
    head = tensors["model.embed_tokens.weight"].clone()
    if stored == "another":
        head = head.flip(0).contiguous()
    if stored == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head}, whole.directory / WEIGHTS, {"format": "pt"})
    _, small = extract(whole.directory, whole.out, TASKS[1])
    assert small.tie_embeddings == (stored != "another")
    names = load_file(whole.out / WEIGHTS)
    assert ("lm_head.weight" in names) == (stored == "another")
    ids, sampling = some_ids(seed), Sampling(max_tokens=15, ignore_eos=True)
    (expected,) = run(LocalModel(whole.directory), [Wish(ids, sampling, task=TASKS[1])])
    (given,) = run(LocalModel(whole.out), [Wish(ids, sampling)])
    Oracle(plain(whole.out)).check_same(ids, expected.tokens, given.tokens)
