"""What ends a text where no file of the model names it: the tokenizer's `eos_token`, wherever that is declared."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import spec_for_model
from manta.local import LocalModel
from model.config import read_config
from protos.generation_pb2 import STOP, Sampling, Submit
from serving.end_tokens import with_end
from tests.random_checkpoint import make_checkpoint
from tests.serving.odd_tokenizers import MIXTRAL, ODD


@pytest.mark.parametrize("name", ODD)
def test_it_is_the_one_that_transformers_finds(tmp_path: Path, name: str) -> None:
    ODD[name](tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path).eos_token_id
    assert read_config(tmp_path).eos_token_ids == ()
    expected = () if found is None else (found,)
    assert with_end(read_config(tmp_path), tmp_path).eos_token_ids == expected
    assert resolve(spec_for_model(str(tmp_path)), Room((2.0,), own=True)).config.eos_token_ids == expected


def test_one_beyond_the_vocabulary_ends_nothing(tmp_path: Path) -> None:
    ODD["names in tokenizer_config"](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | {"vocab_size": 1}))
    assert with_end(read_config(tmp_path), tmp_path).eos_token_ids == ()


def test_the_models_own_come_first(tmp_path: Path) -> None:
    ODD["names in tokenizer_config"](tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert with_end(read_config(tmp_path), tmp_path).eos_token_ids == (7,)


def test_a_text_ends_there(tmp_path: Path) -> None:
    """Drawn as soon as it is the only one that can be."""
    make_checkpoint(tmp_path, hidden_size=32, ffn_size=48, num_experts=2, seed=3)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (tmp_path / "generation_config.json").unlink()
    submit = Submit(prompt_ids=[5, 6, 7], sampling=Sampling(max_tokens=9, logit_bias={1: 100.0}))
    outputs = list(LocalModel(tmp_path).generate(submit))
    assert [(list(output.token_ids), output.finish_reason) for output in outputs] == [([1], STOP)]


def test_without_a_tokenizer_nothing_ends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    assert with_end(read_config(tmp_path), tmp_path).eos_token_ids == ()
