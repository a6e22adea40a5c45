"""Whatever a config.json says: what Manta takes from it is what transformers takes from it, or it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig as TransformersConfig

from model.config import read_config
from model.errors import ConfigError

# Rare values next to usual ones; ... leaves the field out. Together they also contradict each other.
POOL: dict[str, list[Any]] = {
    "hidden_size": [64, 32, 60],
    "intermediate_size": [96, 1],
    "num_hidden_layers": [1, 2],
    "num_attention_heads": [4, 8, 1],
    "num_key_value_heads": [..., None, 1, 2, 4],
    "head_dim": [..., None, 16, 2, 7],
    "num_local_experts": [..., 4, 3, 1],
    "num_experts": [..., 5],
    "num_experts_per_tok": [..., 1, 3],
    "vocab_size": [320, 1],
    "sliding_window": [..., None, 16],
    "use_sliding_window": [..., False],
    "max_position_embeddings": [..., 128, 64],
    "rms_norm_eps": [..., 1e-6, 0.0, 1.0],
    "tie_word_embeddings": [..., True, False],
    "hidden_act": [..., "silu", "swish"],
    "rope_theta": [..., 5e5, 10000],
    "rope_scaling": [..., None, {}, {"type": "linear", "factor": 2}, {"rope_type": "default", "rope_theta": 7.0},
                     {"type": "yarn", "factor": 4.0, "rope_type": "dynamic"}, {"type": "yarn", "factor": 4.0}],
    "rope_parameters": [..., None, {}, {"rope_theta": 9.0}, {"rope_type": "llama3", "factor": 2, "low_freq_factor": 1.0,
                                                           "high_freq_factor": 4.0}],
    "original_max_position_embeddings": [..., 32],
    "partial_rotary_factor": [..., 1.0],
    "bos_token_id": [..., None, 0, 5, 400, -1],
    "dtype": [..., None, "float32", "bfloat16"],
    "torch_dtype": [..., None, "float32", "bfloat16", "float", "torch.bfloat16"],
}  # fmt: skip


@settings(max_examples=300)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in POOL.items()}))
def test_what_both_accept_they_read_alike(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    directory = tmp_path_factory.getbasetemp() / "config"
    directory.mkdir(exist_ok=True)
    said = {"model_type": "mixtral"} | {name: value for name, value in fields.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(said))
    try:
        ours = read_config(directory)
    except ConfigError as error:
        refused = error
    else:
        refused = None
    try:
        theirs: Any = TransformersConfig.from_pretrained(directory)
    except Exception:  # it has many; what it refuses, Manta may refuse or not
        return
    if refused is not None:
        assert _cannot_work(theirs), refused
        return
    rope = theirs.rope_parameters
    assert (
        ours.hidden_size, ours.ffn_size, ours.num_layers, ours.num_heads, ours.num_kv_heads, ours.num_experts,
        ours.top_k, ours.vocab_size, ours.window, ours.max_context, ours.norm_eps, ours.tie_embeddings,
        ours.bos_token_id, ours.rope_theta, ours.rope_scaling.kind, ours.rope_scaling.factor,
    ) == (
        theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers, theirs.num_attention_heads,
        theirs.num_key_value_heads, theirs.num_local_experts, theirs.num_experts_per_tok, theirs.vocab_size,
        theirs.sliding_window, theirs.max_position_embeddings, theirs.rms_norm_eps, theirs.tie_word_embeddings,
        theirs.bos_token_id, rope["rope_theta"], rope["rope_type"], rope.get("factor", 1),
    )  # fmt: skip
    assert ours.head_dim == (theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.dtype == ("float32" if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."))


def _cannot_work(config: Any) -> bool:
    """Whether transformers takes what no model can be computed with."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return (
        head_dim % 2 == 1
        or (config.head_dim is None and config.hidden_size % config.num_attention_heads > 0)
        or config.num_attention_heads % config.num_key_value_heads > 0
        or config.num_experts_per_tok > config.num_local_experts
    )
