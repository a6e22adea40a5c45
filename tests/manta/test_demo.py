"""The bundled demo model loads, predicts Python, and its recipe's parts do what they say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MixtralForCausalLM

import manta.demo
from manta.demo import card, corpus, recipe
from manta.demo.curve import loss_curve
from tests.training.small_data import make_store
from training.encoding import load_encoder
from training.loop import run
from training.mesh import lone_mesh
from training.resolve import job_of, model_of
from training.spec import load_training

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


def test_completions_look_like_python(model: MixtralForCausalLM, tokenizer: Tokenizer) -> None:
    """Most of them: a model of this size repeats itself on one prompt or another."""
    python = re.compile(r"\b(def|class|return|self|import|if|for|raise|try|None|True|False)\b|\"\"\"|[=(]")
    shown = [card.sample(model, tokenizer, prompt) for prompt in (*card.SAMPLE_PROMPTS, "class Stack:", "async def")]
    lines = [re.sub("`+(python)?", "", text.partition("⟨")[2]).split("\n") for text in shown]
    good = [len(set(one)) >= 3 and sum(python.search(line) is not None for line in one) >= 2 for one in lines]
    assert sum(good) >= 4, shown


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


def test_pieces_begin_at_definitions_and_keep_decorators(tmp_path: Path) -> None:
    text = "import os\n" + "".join(f"\n@cached\ndef f{number}():\n    return {'x' * 150}\n" for number in range(9))
    found = list(recipe.pieces(text))
    assert len(found) == 3
    assert all(piece.startswith("@cached\ndef ") and len(piece) >= recipe.LEAST_PIECE for piece in found)
    assert list(recipe.pieces("print(1)\n")) == []


def test_the_loss_curve_is_a_picture() -> None:
    root = ElementTree.fromstring(loss_curve([8.0 / (1 + step) for step in range(1000)], "loss"))
    points = [line.attrib["points"].split() for line in root if line.tag.endswith("polyline")]
    assert [len(line) for line in points] == [500, 500]
    heights = [float(point.split(",")[1]) for point in points[0]]
    assert heights == sorted(heights), "it falls: downwards is larger"


def test_the_recipe_from_corpus_to_card(tmp_path: Path, seed: int) -> None:
    """All of it but Ray: a few steps of the very file, on a small part of the corpus."""
    texts = {f"{number}.py": SOURCE * 20 for number in range(3)}
    small = corpus.Corpus(train=texts, held_out={"held_out.py": SOURCE})
    recipe.prepare(tmp_path, small)
    few = {"schedule.steps": 2, "schedule.batch": 2, "optimizer.warmup_steps": 1}
    spec = load_training(tmp_path / "train.yaml", few)
    config = model_of(spec)
    assert (config.num_experts, config.window, config.eos_token_ids) == (8, 256, (1,))
    encoder = load_encoder(spec.model.tokenizer_directory, config.vocab_size)
    make_store(tmp_path / "store", encoder.encode(list(texts.values())), vocab_size=config.vocab_size)
    run(job_of(spec, config, tmp_path / "store", None), lone_mesh())
    recipe.finish(tmp_path, small)
    card_text = (tmp_path / "model" / "README.md").read_text()
    assert "bits per byte" in card_text
    assert "2 steps of 1024 tokens" in card_text
    assert (tmp_path / "model" / "loss.svg").is_file()
    assert MixtralForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_bits_per_byte() -> None:
    assert card.Score(nats=2.0, num_tokens=4).per_token == 0.5
    assert card.Score(nats=0.6931471805599453 * 8, num_tokens=4).bits_per_byte(4) == pytest.approx(2.0)
