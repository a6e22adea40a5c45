"""Which tokens end a text: those of transformers' `generate()`, and the tokenizer's where there are none."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralForCausalLM

from manta.local import LocalModel
from model.config import read_config
from model.errors import ConfigError
from protos.generation_pb2 import STOP, Sampling, Submit
from tests.random_checkpoint import make_checkpoint, make_tokenizer

CONFIG = [..., None, 5, [5, 6], [5, 1000], 1000]
GENERATION: list[Any] = ["no file", {}, {"temperature": 0.5}, {"eos_token_id": None}, {"eos_token_id": 7}]
GENERATION += [{"eos_token_id": [7, 8, 7]}, {"_from_model_config": True, "eos_token_id": 7}, {"eos_token_id": [2, 9]}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, hidden_size=32, ffn_size=48, num_experts=2, seed=3, with_tokenizer=False)
    return path


def say(directory: Path, config: object, generation: object) -> Path:
    """Writes what config.json and generation_config.json say; ... and "no file" leave it out."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | {"eos_token_id": config}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    (directory / "generation_config.json").unlink(missing_ok=True)
    if generation != "no file":
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.mark.parametrize(("config", "generation"), list(itertools.product(CONFIG, GENERATION)), ids=str)
def test_as_transformers(directory: Path, config: object, generation: object) -> None:
    say(directory, config, generation)
    theirs: Any = MixtralForCausalLM.from_pretrained(directory).generation_config.eos_token_id
    ids = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    assert read_config(directory).eos_token_ids == tuple(dict.fromkeys(each for each in ids if each < 320))


def name_eos(directory: Path, **files: object) -> Path:
    """A copy of config.json without an end, and the files of a tokenizer, by their names before the dot."""
    (directory / "config.json").write_text(
        json.dumps({"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
                   | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320})
    )  # fmt: skip
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


ADDED = {"added_tokens_decoder": {"0": {"content": "<s>"}, "300": {"content": "<|im_end|>"}}}
TOKENIZER = {"added_tokens": [{"id": 301, "content": "<|im_end|>"}], "model": {"vocab": {"</s>": 2, "far": 320}}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"eos_token": "<|im_end|>"} | ADDED}, (300,)),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}} | ADDED}, (300,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "tokenizer": TOKENIZER}, (301,)),
        ({"tokenizer_config": {"eos_token": "</s>"}, "tokenizer": TOKENIZER}, (2,)),
        ({"tokenizer_config": {"eos_token": "far"}, "tokenizer": TOKENIZER}, ()),
        ({"tokenizer_config": {"eos_token": "none"}, "tokenizer": TOKENIZER}, ()),
        ({"tokenizer_config": {"eos_token": "</s>"}}, ()),
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": "</s>"}, "tokenizer": TOKENIZER}, (2,)),
        ({"special_tokens_map": {"eos_token": {"content": "</s>"}}, "tokenizer": TOKENIZER}, (2,)),
        ({"tokenizer_config": {"eos_token": None}, "tokenizer": TOKENIZER}, ()),
        (
            {
                "tokenizer": {"model": {"vocab": [["a", -1.0], ["</s>", 0.0]]}},
                "tokenizer_config": {"eos_token": "</s>"},
            },
            (1,),
        ),
        ({}, ()),
    ],
)
def test_where_no_file_of_the_model_names_one(
    tmp_path: Path, files: dict[str, object], expected: tuple[int, ...]
) -> None:
    assert read_config(name_eos(tmp_path, **files)).eos_token_ids == expected


def test_the_models_own_come_first(tmp_path: Path) -> None:
    name_eos(tmp_path, tokenizer_config={"eos_token": "</s>"}, tokenizer=TOKENIZER)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert read_config(tmp_path).eos_token_ids == (7,)


def test_a_text_ends_there(directory: Path) -> None:
    """Drawn as soon as it is the only one that can be: by the tokenizer's name for it alone."""
    say(directory, None, "no file")
    make_tokenizer(320).save_pretrained(directory)
    submit = Submit(prompt_ids=[5, 6, 7], sampling=Sampling(max_tokens=9, logit_bias={1: 100.0}))
    outputs = list(LocalModel(directory).generate(submit))
    assert [(list(output.token_ids), output.finish_reason) for output in outputs] == [([1], STOP)]


def test_a_broken_generation_config_is_named(directory: Path) -> None:
    say(directory, 5, {"eos_token_id": "</s>"})
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is"):
        read_config(directory)
