"""config.json of old and new transformers is read alike; what cannot be served is refused by name."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import MixtralConfig as TransformersConfig

from model.config import MixtralConfig, read_config
from model.errors import ConfigError, ModelError
from model.routing import Routing

OLD = {  # as transformers 4.36 wrote it for the first Mixtral
    "architectures": ["MixtralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def write(directory: Path, **changes: object) -> Path:
    """OLD with `changes`; a value of ... removes the field."""
    fields = {name: value for name, value in (OLD | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def test_reads_the_first_mixtral(tmp_path: Path) -> None:
    assert read_config(write(tmp_path)) == MixtralConfig(
        hidden_size=4096,
        ffn_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        num_experts=8,
        top_k=2,
        vocab_size=32000,
        window=None,
        max_context=32768,
        rope_theta=1e6,
        norm_eps=1e-5,
        tie_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="bfloat16",
    )


def test_old_and_new_fields_read_alike(tmp_path: Path) -> None:
    new = {"rope_theta": ..., "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    new |= {"torch_dtype": ..., "dtype": "float32"}
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = read_config(write(tmp_path / "old", rope_theta=5e5, rope_scaling=None, torch_dtype="float32"))
    assert read_config(write(tmp_path / "new", **new)) == old
    assert (old.rope_theta, old.dtype) == (5e5, "float32")


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"sliding_window": 16}, "window", 16),
        ({"head_dim": 64}, "head_dim", 64),
        ({"head_dim": None}, "head_dim", 128),
        ({"num_key_value_heads": None}, "num_kv_heads", 32),
        ({"num_key_value_heads": ...}, "num_kv_heads", 8),
        ({"num_local_experts": ..., "num_experts": 5}, "num_experts", 5),
        ({"num_experts_per_tok": 8}, "top_k", 8),
        ({"rope_theta": ...}, "rope_theta", 1e6),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default"}}, "rope_theta", 1e4),
        ({"rope_scaling": {"type": "default"}}, "rope_theta", 1e6),
        ({"tie_word_embeddings": True}, "tie_embeddings", True),
        ({"tie_word_embeddings": ...}, "tie_embeddings", False),
        ({"max_position_embeddings": ...}, "max_context", 131072),
        ({"rms_norm_eps": ...}, "norm_eps", 1e-5),
        ({"bos_token_id": None}, "bos_token_id", None),
        ({"bos_token_id": ...}, "bos_token_id", 1),
        ({"eos_token_id": [2, 7, 2]}, "eos_token_ids", (2, 7)),
        ({"eos_token_id": [2, 10**6, -1]}, "eos_token_ids", (2,)),  # beyond the vocabulary: it can never be drawn
        ({"eos_token_id": None}, "eos_token_ids", ()),
        ({"eos_token_id": ...}, "eos_token_ids", ()),
        ({"torch_dtype": "float16"}, "dtype", "float32"),
        ({"num_local_experts": 4, "num_experts": 5}, "num_experts", 5),
        ({"bos_token_id": 32000}, "bos_token_id", 32000),
        ({"bos_token_id": -1}, "bos_token_id", -1),
        ({"torch_dtype": "torch.float32"}, "dtype", "float32"),
        ({"torch_dtype": "float64"}, "dtype", "float32"),
        ({"torch_dtype": "bfloat16", "dtype": "float32"}, "dtype", "float32"),
        ({"torch_dtype": "bfloat16", "dtype": None}, "dtype", "bfloat16"),
        ({"torch_dtype": ...}, "dtype", "float32"),
        ({"quantization_config": None}, "window", None),
    ],
)
def test_variants(tmp_path: Path, changes: dict[str, object], field: str, expected: object) -> None:
    assert getattr(read_config(write(tmp_path, **changes)), field) == expected


@pytest.mark.parametrize("missing", ["num_key_value_heads", "rope_theta", "max_position_embeddings", "rms_norm_eps"])
def test_missing_fields_mean_what_transformers_makes_of_them(tmp_path: Path, missing: str) -> None:
    ours = read_config(write(tmp_path, **{missing: ...}))
    theirs = TransformersConfig.from_pretrained(write(tmp_path, **{missing: ...}))
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.max_context, ours.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)


def test_generation_config_adds_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert read_config(write(tmp_path)).eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"model_type": ...}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": ...}, "num_key_value_heads"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"head_dim": 63}, "head_dim"),
        ({"hidden_size": 4100}, "head_dim"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"bos_token_id": "<s>"}, "bos_token_id"),
        ({"bos_token_id": True}, "bos_token_id"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_local_experts": 10**9}, "num_local_experts"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
        ({"dtype": 16}, "dtype"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, **changes))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {field} ")
    assert "must be" in message
    assert caught.value.remedy
    value = changes.get(field, ...)
    assert value is ... or json.dumps(value) in message


def test_an_error_is_no_longer_than_it_needs_to_be(tmp_path: Path) -> None:
    for changes in ({"hidden_size": "a" * 10**6}, {"manta_routing": {"a" * 10**6: 3}}, {"eos_token_id": ["a"] * 10**6}):
        with pytest.raises(ConfigError) as caught:
            read_config(write(tmp_path, **changes))
        assert len(str(caught.value)) < 1000


SENTENCE = {"level": "sentence", "positions": 32}
TASK = {"level": "task", "tasks": ["python", "prose"]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (..., Routing()),
        (None, Routing()),
        ({}, Routing()),
        ({"level": "token", "positions": None}, Routing()),
        (SENTENCE, Routing("sentence", 32)),
        (TASK | {"positions": None}, Routing("task", 0, ("python", "prose"))),
    ],
)
def test_routing(tmp_path: Path, given: object, expected: Routing) -> None:
    assert read_config(write(tmp_path, manta_routing=given)).routing == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("sentence", 'manta_routing is "sentence", but must be an object or null'),
        ({"level": "word"}, 'manta_routing.level is "word", but must be "token" or "sentence" or "task"'),
        ({"level": 3}, "manta_routing.level is 3"),
        ({"level": "sentence"}, "manta_routing.positions is missing, but must be an integer of at least 1"),
        (SENTENCE | {"positions": 0}, "manta_routing.positions is 0"),
        (SENTENCE | {"positions": True}, "manta_routing.positions is true"),
        (SENTENCE | {"tasks": ["a"]}, 'manta_routing.tasks is ["a"], but must be absent, as level is "sentence"'),
        ({"positions": 32}, 'manta_routing.positions is 32, but must be absent, as level is "token"'),
        ({"level": "task"}, "manta_routing.tasks is missing, but must be a list of different names, at least one"),
        (TASK | {"tasks": []}, "manta_routing.tasks is []"),
        (TASK | {"tasks": "python"}, 'manta_routing.tasks is "python"'),
        (TASK | {"tasks": ["a", "a"]}, 'manta_routing.tasks is ["a", "a"]'),
        (TASK | {"tasks": ["a", ""]}, 'manta_routing.tasks is ["a", ""]'),
        (TASK | {"tasks": ["a", 3]}, 'manta_routing.tasks is ["a", 3]'),
        (TASK | {"positions": 3}, 'manta_routing.positions is 3, but must be absent, as level is "task"'),
        (SENTENCE | {"window": 3}, "manta_routing.window is 3, but must be absent; fields here: level, positions, tas"),
    ],
)
def test_routing_that_is_refused(tmp_path: Path, given: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, manta_routing=given))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {words}")
    assert "Correct it in config.json" in caught.value.remedy


def test_missing_directory_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist.*Give a local directory"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"there is no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_unreadable_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json: the file"):
        read_config(tmp_path)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("here", "it broke.", "Mend it.")))  # noqa: S301  our own bytes
    assert isinstance(error, ModelError)
    assert (str(error), error.remedy) == ("here: it broke. Mend it.", "Mend it.")


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, model.config; print(sorted({'json', 'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "['json']"
