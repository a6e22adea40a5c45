"""config.json and the tokenizer's files are read, or refused by the errors that a start reports."""

from model.config import CONFIG_FILE, read_config
from model.end_tokens import GENERATION_FILE
from model.errors import ModelError
from serving.tokenizer import TextCodec
from serving.tokenizer_files import TOKENIZER_FILE, TokenizerError
from tests.fuzz.folder import Folder
from tests.fuzz.material import Material
from tests.serving.small_tokenizers import build_metaspace

WORDS = tuple(
    f'"{word}"'.encode()
    for word in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "num_local_experts", "num_experts_per_tok", "vocab_size", "sliding_window", "rope_theta",
        "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_type", "default", "linear", "yarn",
        "llama3", "dynamic", "factor", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "dtype",
        "torch_dtype", "float32", "bfloat16", "manta_routing", "level", "sentence", "positions", "task", "tasks",
        "chat_template", "bos_token", "eos_token", "content", "additional_special_tokens", "added_tokens_decoder",
        "added_tokens", "model", "vocab", "merges", "decoder", "pre_tokenizer", "normalizer", "post_processor",
        "model_type", "mixtral", "architectures", "MixtralForCausalLM", "hidden_act", "silu",
    )
)  # fmt: skip
TOKENIZER = build_metaspace().to_str().encode()
MODEL = (
    b'{"model_type":"mixtral","hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":1,'
    b'"num_key_value_heads":1,"vocab_size":9}'
)
_folder = Folder()


def one(data: bytes) -> None:
    material = Material(data)
    kind = material.number(4)
    content = material.rest()
    if kind == 0:
        _config({CONFIG_FILE: content})
    elif kind == 1:
        _config({CONFIG_FILE: MODEL, GENERATION_FILE: content})
    elif kind == 2:
        _tokenizer({TOKENIZER_FILE: TOKENIZER, "tokenizer_config.json": content})
    else:
        _tokenizer({TOKENIZER_FILE: content})


def _config(files: dict[str, bytes]) -> None:
    try:
        read_config(_folder.write(files))
    except ModelError as error:
        assert error.where
        assert error.remedy


def _tokenizer(files: dict[str, bytes]) -> None:
    try:
        codec = TextCodec.load(_folder.write(files))
    except TokenizerError:
        return
    codec.detokenizer().push([0, 1])
