"""The bundled demo model loads, predicts Python, and its recipe's parts do what they say."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MixtralForCausalLM

import manta.demo
from manta.demo import card, corpus, recipe

FOLDER = Path(manta.demo.__file__).parent
SOURCE = """\
def close(self):
    '''Close the file.'''
    if self.fp is not None:
        self.fp.close()
        return None
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Iterator[MixtralForCausalLM]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield MixtralForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def test_the_checkpoint_is_a_standard_mixtral_of_at_most_20_mb() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["dtype"] == "bfloat16"
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000
    with safe_open(weights, "pt") as tensors:
        names = set(tensors.keys())
        assert {tensors.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "model.layers.0.block_sparse_moe.experts.7.w2.weight" in names
    assert "model.layers.3.block_sparse_moe.gate.weight" in names


def test_the_tokenizer_starts_a_text_and_gives_it_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SOURCE).ids
    assert ids[0] == 0
    assert tokenizer.decode(ids) == SOURCE
    odd = "naïve = '\u2603\U0001f40d'\t# \x00"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd
    assert tokenizer.get_vocab_size() == corpus.VOCAB_SIZE


def test_the_chat_template_writes_roles_and_leaves_the_answer_open() -> None:
    chat = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    shown = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "<s>system: be brief\nuser: hi\nassistant:"
    assert chat.encode(SOURCE)[0] == 0


def test_the_model_predicts_python_better_than_prose(model: MixtralForCausalLM, tokenizer: Tokenizer) -> None:
    source, shuffled = tokenizer.encode(SOURCE).ids, sorted(tokenizer.encode(SOURCE).ids)
    assert card.score(model, [source]).per_token < 4.0
    assert card.score(model, [source]).per_token < card.score(model, [shuffled]).per_token - 2.0


def test_the_card_states_the_held_out_loss_and_the_licence() -> None:
    text = (FOLDER / "README.md").read_text()
    for needed in ("bits per byte", "nats per token", "PSF", "apache-2.0", "python -m manta.demo.recipe", "```python"):
        assert needed in text
    assert "$" not in text


def test_which_files_are_sources() -> None:
    assert corpus.is_source("json/decoder.py")
    for name in ("test/test_json.py", "idlelib/idle_test/x.py", "site-packages/a.py", "_sysconfigdata_x.py", "a.txt"):
        assert not corpus.is_source(name), name


def test_the_held_out_split_is_small_and_the_same_everywhere() -> None:
    texts = corpus.read_corpus()
    assert not texts.train.keys() & texts.held_out.keys()
    assert 0.01 < len(texts.held_out) / len(texts.train) < 0.06
    assert corpus.is_held_out("secrets.py")
    assert not corpus.is_held_out("json/decoder.py")


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Python source"):
        corpus.read_corpus(tmp_path)


def test_a_pause_counts_no_training_time() -> None:
    clock = recipe.TrainingClock(budget_s=10.0)
    for step_s in (1.0, 3600.0, 1.5):
        clock.add(step_s)
    assert clock.spent_s == 2.5
    assert clock.progress == 0.25


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [recipe.learning_rate(progress / 1000) for progress in range(1001)]
    peak = rates.index(max(rates))
    assert rates[peak] == recipe.PEAK_LR
    assert peak == 20
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(recipe.FINAL_LR)


def test_batches_cover_the_corpus_and_open_with_a_document_and_with_a_start() -> None:
    ids_N = torch.arange(3, 3 + 2**14, dtype=torch.int16)
    seen: set[int] = set()
    stream = recipe.batches(ids_N, [128, 256], 256, torch.Generator().manual_seed(0))
    for _ in range(16):
        batch_BL = next(stream)
        assert batch_BL.shape[1] == 256
        assert batch_BL[0, 1].item() - 4 in {128, 256}
        assert batch_BL[-1, 0] == 0
        seen |= set(batch_BL.flatten().tolist())
    assert len(seen) > 0.9 * len(ids_N)


def test_a_short_training_run_saves_a_checkpoint_and_its_card(tmp_path: Path) -> None:
    files = sorted(name for name in corpus.read_corpus().train if name.startswith("json/"))
    library = Path(json.__file__).parent.parent
    texts = {name: (library / name).read_text() for name in files} | {"long.py": SOURCE * 60}
    small = corpus.Corpus(train=texts, held_out={"held_out.py": SOURCE})
    bpe = corpus.train_tokenizer(small.train.values(), vocab_size=512)
    recipe.train(tmp_path, bpe, recipe.encode(bpe, small), budget_s=1.0)
    card.write_card(tmp_path, small)
    assert "bits per byte" in (tmp_path / "README.md").read_text()
    loaded = MixtralForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert not list(tmp_path.glob(".*.partial"))


def test_bits_per_byte() -> None:
    assert card.Score(nats=2.0, num_tokens=4).per_token == 0.5
    assert card.Score(nats=0.6931471805599453 * 8, num_tokens=4).bits_per_byte(4) == pytest.approx(2.0)
