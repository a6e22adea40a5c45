"""The shape of a Mixtral model, read from a checkpoint's config.json and checked.

Reads the files of old transformers (`rope_theta`, `torch_dtype`, `rope_scaling`) and of new ones (`rope_parameters`,
`dtype`). A field that may be left out gets the value that transformers would give it, and of two that say the same the
one counts that counts there. No torch here: the gateway, which has to start fast, reads this too.
"""

from dataclasses import dataclass
from pathlib import Path

from checkpoint.errors import CheckpointError
from checkpoint.files import all_floats, stored_dtype
from model.config_fields import ConfigFields
from model.end_tokens import read_end_tokens
from model.errors import ConfigError
from model.rope_scaling import UNSCALED, RopeScaling, read_rope
from model.routing import BY_TOKEN, Routing, read_routing

CONFIG_FILE = "config.json"

# What each number type is computed in. float32 holds every float16 exactly; bfloat16, of the same size, would round
# them to 8 bits and change what the model says. CPUs multiply float16 matrices at a quarter of float32's speed.
_COMPUTE_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32", "float64": "float32"}
_TORCH_NAMES = {"half": "float16", "float": "float32", "double": "float64"}  # what torch calls them, too
MAX_LAYERS, MAX_EXPERTS = 1 << 12, 1 << 12


@dataclass(frozen=True)
class MixtralConfig:
    """Sizes and constants of one Mixtral model.

    Args:
        window: Positions that a query sees; None: all (full attention).
        max_context: Positions that the model was trained for: `max_position_embeddings`.
        eos_token_ids: The tokens that end a text, as the model's own files say.
        dtype: What the model is computed in unless told otherwise: the weights' own; float32 for float16.
    """

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
    rope_scaling: RopeScaling = UNSCALED

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
    # transformers sets one and then the other: `num_experts`, where it is given, stands.
    experts_field = "num_experts" if "num_experts" in fields else "num_local_experts"
    num_experts = fields.integer(experts_field, default=8, maximum=MAX_EXPERTS)
    vocab_size = fields.integer("vocab_size")
    max_context = fields.integer("max_position_embeddings", default=4096 * 32)
    rope_theta, rope_scaling = read_rope(fields, max_context)
    return MixtralConfig(
        hidden_size=hidden_size,
        ffn_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers", maximum=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=_head_dim(fields, hidden_size, num_heads),
        num_experts=num_experts,
        top_k=_top_k(fields, num_experts),
        vocab_size=vocab_size,
        window=fields.optional_integer("sliding_window"),
        max_context=max_context,
        rope_theta=rope_theta,
        norm_eps=fields.number("rms_norm_eps", default=1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        bos_token_id=_bos_token_id(fields),
        eos_token_ids=read_end_tokens(fields, vocab_size),
        dtype=_dtype(fields),
        routing=read_routing(fields),
        rope_scaling=rope_scaling,
    )


def _config_path(directory: Path) -> Path:
    path = directory / CONFIG_FILE
    try:
        if path.is_file() or path.is_symlink():
            return path
        problem = f"there is no {CONFIG_FILE}." if directory.is_dir() else "this directory does not exist."
        snapshots = sorted(directory.glob(f"snapshots/*/{CONFIG_FILE}"))
    except OSError as error:
        remedy = "Let the user that Manta runs as read it and every folder above it."
        raise ConfigError(str(directory), f"it cannot be read ({error.strerror}).", remedy) from error
    if snapshots:
        remedy = f"This is the hub's cache: give the folder of one of its snapshots, such as {snapshots[0].parent}."
    else:
        remedy = (
            f"Give a local directory that holds a Mixtral model in Hugging Face format: {CONFIG_FILE}, safetensors "
            "weights and a tokenizer."
        )
    raise ConfigError(str(directory), problem, remedy)


def _check_supported(fields: ConfigFields) -> None:
    """Refuse what would load, or nearly load, and then compute something else than the model means."""
    if fields.get("model_type") != "mixtral":
        raise fields.refuse("model_type", '"mixtral"', "Only Mixtral models can be served; give the directory of one.")
    if fields.get("hidden_act") not in (None, "silu", "swish"):
        raise fields.refuse("hidden_act", '"silu"', "Models with another activation cannot be served.")
    if fields.get("quantization_config") is not None:
        raise fields.refuse("quantization_config", "absent or null", _remedy_of_quantization(fields.path.parent))


def _remedy_of_quantization(directory: Path) -> str:
    if _is_whole(directory):
        return f"The weights here are plain numbers, not quantized: remove the field from {CONFIG_FILE}."
    return "Give the unquantized checkpoint (float32, bfloat16 or float16)."


def _remedy_of_dtype(directory: Path) -> str:
    if _is_whole(directory):
        return f"Remove the field from {CONFIG_FILE}: the type that the weights are stored in counts then."
    return "Convert the weights to one of these with transformers (from_pretrained(dtype=...), save_pretrained)."


def _is_whole(directory: Path) -> bool:
    try:
        return all_floats(directory)
    except CheckpointError:  # said when the weights are wanted
        return False


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


def _bos_token_id(fields: ConfigFields) -> int | None:
    """As it stands, even outside the vocabulary: it is written again by exports, and nothing here reads it."""
    if "bos_token_id" not in fields:
        return 1
    value = fields.get("bos_token_id")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise fields.refuse("bos_token_id", "a token id or null")
    return value


def _dtype(fields: ConfigFields) -> str:
    return _COMPUTE_DTYPES[_stored_dtype(fields)]


def stored_dtype_of(directory: Path) -> str:
    """The number type of a checkpoint's weights: as config.json has it, or else of the first weight.

    Raises ConfigError, and CheckpointError when that weight's file cannot be read.
    """
    return _stored_dtype(ConfigFields.read(_config_path(directory)))


def _stored_dtype(fields: ConfigFields) -> str:
    name = "dtype" if fields.get("dtype") is not None else "torch_dtype"
    dtype = fields.get(name)
    if dtype is None:
        stored = stored_dtype(fields.path.parent)
        return stored if stored in _COMPUTE_DTYPES else "float32"
    given = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    stored = _TORCH_NAMES.get(given, given)
    if stored not in _COMPUTE_DTYPES:
        allowed = " or ".join(f'"{known}"' for known in _COMPUTE_DTYPES)
        raise fields.refuse(name, allowed, _remedy_of_dtype(fields.path.parent))
    return stored
