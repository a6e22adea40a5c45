"""Which tokens end a text by the model's own files: those of transformers' `generate()`."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralForCausalLM

from model.config import read_config
from model.errors import ConfigError
from tests.random_checkpoint import make_checkpoint

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


def test_a_link_that_leads_where_nobody_may_look_is_named(directory: Path) -> None:
    """As from a snapshot in the hub's cache to a blob of another user's."""
    say(directory, 5, "no file")
    (directory / "generation_config.json").symlink_to("x" * 300)
    with pytest.raises(ConfigError, match=r"generation_config\.json: the file cannot be read .*File name too long"):
        read_config(directory)


def test_a_broken_generation_config_is_named(directory: Path) -> None:
    say(directory, 5, {"eos_token_id": "</s>"})
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is"):
        read_config(directory)
