"""The shape of a Mixtral model, read from a checkpoint's config.json and checked.

Reads the files of old transformers (`rope_theta`, `torch_dtype`, `rope_scaling`) and of new ones (`rope_parameters`,
`dtype`). A field that may be left out gets the value that transformers would give it. No torch here: the gateway, which
has to start fast, reads this too.
"""

from dataclasses import dataclass
from pathlib import Path

from model.config_fields import ConfigFields
from model.errors import ConfigError
from model.routing import BY_TOKEN, Routing, read_routing

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

# float16 weights are computed in bfloat16, which has the same size and the wider range; no kernel here computes in
# float16. Who wants every bit of a float16 checkpoint serves it with dtype float32.
_COMPUTE_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}


@dataclass(frozen=True)
class MixtralConfig:
    """Sizes and constants of one Mixtral model. `window` None means full attention; `dtype` is the checkpoint's own."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    vocab_size: int
    window: int | None
    max_context: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str
    routing: Routing = BY_TOKEN

    @property
    def query_size(self) -> int:
        """Width of all query heads side by side (H * S): the input of the output projection."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads, and of all value heads, side by side (G * S)."""
        return self.num_kv_heads * self.head_dim


def read_config(directory: Path) -> MixtralConfig:
    """Read and check `directory`/config.json (and the end-of-text tokens of generation_config.json, if there is one).

    Raises ConfigError naming the file, the field, its value, what is allowed and what to do.
    """
    fields = ConfigFields.read(_config_path(directory))
    _check_supported(fields)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_experts = fields.integer("num_local_experts" if "num_local_experts" in fields else "num_experts", default=8)
    vocab_size = fields.integer("vocab_size")
    return MixtralConfig(
        hidden_size=hidden_size,
        ffn_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=_head_dim(fields, hidden_size, num_heads),
        num_experts=num_experts,
        top_k=_top_k(fields, num_experts),
        vocab_size=vocab_size,
        window=fields.optional_integer("sliding_window"),
        max_context=fields.integer("max_position_embeddings", default=4096 * 32),
        rope_theta=_rope_theta(fields),
        norm_eps=fields.positive_number("rms_norm_eps", default=1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        bos_token_id=_bos_token_id(fields, vocab_size),
        eos_token_ids=_eos_token_ids(fields, vocab_size),
        dtype=_dtype(fields),
        routing=read_routing(fields),
    )


def _config_path(directory: Path) -> Path:
    path = directory / CONFIG_FILE
    if path.is_file():
        return path
    problem = f"there is no {CONFIG_FILE}." if directory.is_dir() else "this directory does not exist."
    raise ConfigError(
        str(directory),
        problem,
        f"Give a local directory that holds a Mixtral model in Hugging Face format: {CONFIG_FILE}, safetensors weights "
        "and a tokenizer.",
    )


def _check_supported(fields: ConfigFields) -> None:
    """Refuse what would load, or nearly load, and then compute something else than the model means."""
    if fields.get("model_type") != "mixtral":
        raise fields.refuse("model_type", '"mixtral"', "Only Mixtral models can be served; give the directory of one.")
    if fields.get("hidden_act") not in (None, "silu", "swish"):
        raise fields.refuse("hidden_act", '"silu"', "Models with another activation cannot be served.")
    if fields.get("quantization_config") is not None:
        remedy = "Give the unquantized checkpoint (float32, bfloat16 or float16)."
        raise fields.refuse("quantization_config", "absent or null", remedy)


def _num_kv_heads(fields: ConfigFields, num_heads: int) -> int:
    # transformers' rule: null means as many as query heads, but a field that is not there at all means 8.
    absent = num_heads if "num_key_value_heads" in fields else 8
    num_kv_heads = fields.integer("num_key_value_heads", default=absent)
    if num_heads % num_kv_heads:
        allowed = f"a divisor of num_attention_heads, which is {num_heads} (without the field it counts as 8)"
        raise fields.refuse("num_key_value_heads", allowed)
    return num_kv_heads


def _head_dim(fields: ConfigFields, hidden_size: int, num_heads: int) -> int:
    head_dim = fields.optional_integer("head_dim")
    if head_dim is None and hidden_size % num_heads:
        raise fields.refuse("head_dim", f"given, as hidden_size {hidden_size} is no multiple of {num_heads} heads")
    head_dim = head_dim or hidden_size // num_heads
    if head_dim % 2:  # rotary embedding turns pairs of dimensions
        raise fields.refuse("head_dim", f"an even number (hidden_size / num_attention_heads gives {head_dim})")
    return head_dim


def _top_k(fields: ConfigFields, num_experts: int) -> int:
    top_k = fields.integer("num_experts_per_tok", default=2)
    if top_k > num_experts:
        raise fields.refuse("num_experts_per_tok", f"at most the number of experts, which is {num_experts}")
    return top_k


def _rope_theta(fields: ConfigFields) -> float:
    theta = fields.positive_number("rope_theta", default=1e6)
    for name in ("rope_scaling", "rope_parameters"):  # the old name and the new one
        section = fields.section(name)
        for kind in ("rope_type", "type"):
            if section.get(kind) not in (None, "default"):
                raise section.refuse(kind, '"default"', "Models with scaled rotary embeddings cannot be served.")
        theta = section.positive_number("rope_theta", default=theta)
        _check_whole_head_rotates(section)
    _check_whole_head_rotates(fields)
    return theta


def _check_whole_head_rotates(fields: ConfigFields) -> None:
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise fields.refuse("partial_rotary_factor", "absent or 1", "Partly rotated heads cannot be served.")


def _bos_token_id(fields: ConfigFields, vocab_size: int) -> int | None:
    if "bos_token_id" not in fields:
        return 1
    token = fields.optional_integer("bos_token_id", minimum=0)
    if token is not None and token >= vocab_size:
        raise fields.refuse("bos_token_id", f"null or a token id below vocab_size, which is {vocab_size}")
    return token


def _eos_token_ids(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    """Every token that ends a text: config.json's, then those that only generation_config.json names."""
    tokens = fields.token_ids("eos_token_id") if "eos_token_id" in fields else (2,)
    generation_path = fields.path.with_name(GENERATION_FILE)
    if generation_path.is_file():
        tokens += ConfigFields.read(generation_path).token_ids("eos_token_id")
    # One beyond the vocabulary (an added token that was never trained) cannot be drawn, so it ends nothing.
    return tuple(dict.fromkeys(token for token in tokens if token < vocab_size))


def _dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name)
    if dtype is None:
        return "float32"  # what transformers assumes
    if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in _COMPUTE_DTYPES:
        remedy = "Convert the weights to one of these with transformers (from_pretrained(dtype=...), save_pretrained)."
        raise fields.refuse(name, " or ".join(f'"{known}"' for known in _COMPUTE_DTYPES), remedy)
    return _COMPUTE_DTYPES[dtype.removeprefix("torch.")]
