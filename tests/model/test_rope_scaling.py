"""Scaled rotary embeddings: what config.json says is read as transformers reads it, and gives the same frequencies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MixtralConfig as TransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

from checkpoint.writer import config_json
from model.config import MixtralConfig, read_config
from model.errors import ConfigError
from model.rope import RotaryTable, frequencies, magnitude
from model.rope_scaling import RopeScaling

Rope = dict[str, Any]

# transformers derives no head_dim for yarn and dynamic.
PLAIN: Rope = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
PLAIN |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320}
PLAIN |= {"max_position_embeddings": 4096, "torch_dtype": "float32"}

LINEAR: Rope = {"type": "linear", "factor": 4.0}
DYNAMIC: Rope = {"type": "dynamic", "factor": 2.5}
YARN: Rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3: Rope = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
KINDS = [LINEAR, DYNAMIC, YARN, LLAMA3]

above_one = st.floats(1, 64, allow_nan=False)
linear = st.builds(lambda factor: LINEAR | {"factor": factor}, above_one)
yarn = st.fixed_dictionaries(
    {"type": st.just("yarn"), "factor": above_one},
    optional={
        "original_max_position_embeddings": st.integers(1, 8192),
        "attention_factor": st.floats(0.1, 4),
        "mscale": st.floats(0, 2),
        "mscale_all_dim": st.floats(0, 2),
        "beta_fast": st.floats(16, 64) | st.integers(16, 64),
        "beta_slow": st.floats(0.1, 16),
        "truncate": st.booleans() | st.none(),
    },
)
llama3 = st.builds(
    lambda factor, low, more, original: (
        LLAMA3
        | {"factor": factor, "low_freq_factor": low, "high_freq_factor": low + more}
        | ({} if original is None else {"original_max_position_embeddings": original})
    ),
    above_one,
    st.floats(0.1, 4),
    st.floats(0.1, 4),
    st.none() | st.integers(1, 8192),
)


def write(directory: Path, **fields: object) -> Path:
    (directory / "config.json").write_text(json.dumps(PLAIN | fields))
    return directory


def read(directory: Path, **fields: object) -> MixtralConfig:
    return read_config(write(directory, **fields))


def check_like_transformers(directory: Path) -> MixtralConfig:
    """Asserts that a directory's config.json gives the frequencies and the magnitude that it gives transformers."""
    ours = read_config(directory)
    theirs = MixtralRotaryEmbedding(TransformersConfig.from_pretrained(directory))
    given = frequencies(ours.head_dim, ours.rope_theta, ours.rope_scaling)
    assert torch.equal(given, theirs.inv_freq), (directory / "config.json").read_text()
    assert magnitude(ours.rope_scaling) == theirs.attention_scaling
    return ours


@given(
    said=linear | yarn | llama3 | st.builds(lambda factor: DYNAMIC | {"factor": factor}, above_one),
    theta=st.none() | st.floats(2, 1e7),
    field=st.sampled_from(["rope_scaling", "rope_parameters"]),
    head_dim=st.sampled_from([4, 16, 64, 128]),
)
def test_frequencies_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, said: Rope, theta: float | None, field: str, head_dim: int
) -> None:
    directory = tmp_path_factory.mktemp("config")
    fields = {field: said, "head_dim": head_dim} | ({} if theta is None else {"rope_theta": theta})
    config = check_like_transformers(write(directory, **fields))
    # What an export writes is read alike again, by both.
    (directory / "config.json").write_text(json.dumps(config_json(config, "float32")))
    assert check_like_transformers(directory) == config
    old = json.loads((directory / "config.json").read_text())
    del old["rope_parameters"]
    assert read(directory, **old) == config


@pytest.mark.parametrize("said", KINDS, ids=lambda said: str(said.get("type", "llama3")))
@pytest.mark.parametrize(
    "position", [0, 1, 511, 1023, 4095], ids=str
)  # at and around the original contexts, and the last one
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotations_are_those_of_transformers(tmp_path: Path, said: Rope, position: int, dtype: torch.dtype) -> None:
    config = read(tmp_path, rope_scaling=said)
    scaling = config.rope_scaling
    table = RotaryTable(config.head_dim, config.rope_theta, config.max_context, scaling=scaling, dtype=dtype)
    cos_TS, signed_sin_TS = table.rows(torch.tensor([position]))
    theirs = MixtralRotaryEmbedding(TransformersConfig.from_pretrained(tmp_path))
    cos, sin = theirs(torch.zeros(1, dtype=dtype), torch.tensor([[position]]))
    assert torch.equal(cos_TS, cos[0])
    half = config.head_dim // 2
    assert torch.equal(signed_sin_TS[:, half:], sin[0][:, half:])
    assert torch.equal(signed_sin_TS[:, :half], -sin[0][:, :half])


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5}, "rope_theta": 7e3},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": None, "rope_parameters": LINEAR | {"rope_theta": 5e5}, "rope_theta": 7e3},
        {"rope_scaling": LINEAR | {"rope_theta": 5e5}, "rope_theta": 7e3},
        {"rope_scaling": YARN | {"type": "linear", "rope_type": "yarn"}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 64},
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 64},
        {"rope_scaling": YARN | {"factor": None}},
        {"rope_scaling": YARN | {"finetuned": True}},
        {"rope_scaling": YARN | {"beta_fast": None, "beta_slow": None, "attention_factor": None, "mscale": None}},
        {"rope_scaling": YARN | {"mscale": 0.0, "mscale_all_dim": 1.0}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 7e3},
        {"rope_theta": 7e3},
    ],
    ids=json.dumps,
)
def test_of_two_fields_the_same_counts(tmp_path: Path, fields: Rope) -> None:
    config = check_like_transformers(write(tmp_path, **fields))
    theirs = TransformersConfig.from_pretrained(tmp_path).rope_parameters
    assert (config.rope_theta, config.rope_scaling.kind) == (theirs["rope_theta"], theirs["rope_type"])


def test_no_head_dim_is_derived(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling=YARN, head_dim=None) == read(tmp_path, rope_scaling=YARN)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"type": "longrope"}, 'type is "longrope", but must be "default" or "linear" or "dynamic" or "yarn" or "lla'),
        ({"type": "su", "factor": 2}, 'type is "su"'),
        ({"rope_type": 3}, "rope_type is 3"),
        ({"type": "linear"}, "factor is missing, but must be a finite number above 0"),
        (LINEAR | {"factor": 0.5}, "factor is 0.5, but must be a number of at least 1"),
        (LINEAR | {"factor": "2"}, 'factor is "2"'),
        (LINEAR | {"factor": float("nan")}, "factor is NaN"),
        (LINEAR | {"factor": 10**400}, "factor is 1000"),
        (LINEAR | {"factor": True}, "factor is true"),
        (DYNAMIC | {"factor": None}, "factor is null"),
        ({"type": "yarn"}, "factor is missing"),
        (YARN | {"factor": None, "original_max_position_embeddings": 5000}, "factor is null"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        (YARN | {"beta_fast": 0.5}, "beta_fast is 0.5, but must be at least beta_slow, which is 1.0"),
        (YARN | {"beta_slow": 40}, "beta_fast is missing, but must be at least beta_slow, which is 40.0"),
        (YARN | {"attention_factor": -1}, "attention_factor is -1"),
        (YARN | {"attention_factor": 0}, "attention_factor is 0"),
        (YARN | {"mscale": "a"}, 'mscale is "a"'),
        (YARN | {"truncate": 1}, "truncate is 1, but must be true or false"),
        (LLAMA3 | {"low_freq_factor": None}, "low_freq_factor is null"),
        (LLAMA3 | {"high_freq_factor": 1}, "high_freq_factor is 1, but must be above low_freq_factor, which is 1.0"),
        (LINEAR | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"full_attention": LINEAR}, "full_attention is {"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_what_is_refused(tmp_path: Path, field: str, section: Rope, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **{field: section})
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {field}.{words}")
    assert caught.value.remedy


def test_yarn_needs_a_base_above_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rope_theta is 1, but must be above 1"):
        read(tmp_path, rope_scaling=YARN, rope_theta=1)
    assert read(tmp_path, rope_scaling=LINEAR, rope_theta=1).rope_theta == 1


def test_an_unscaled_embedding_is_the_default(tmp_path: Path) -> None:
    assert read(tmp_path).rope_scaling == RopeScaling()
    assert magnitude(RopeScaling()) == 1
