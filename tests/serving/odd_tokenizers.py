"""Directories whose tokenizer is declared in odd places, each as small as it can be; transformers is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from tests.serving.small_tokenizers import build_metaspace, build_sentencepiece_like, train_byte_level

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ eos_token }}{{ image_token }}"
)
PLAIN = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False}
IM_END = {**PLAIN, "special": True}
MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 500,
    "max_position_embeddings": 4096,
    "dtype": "float32",
}

Build = Callable[[Path], None]


def write(
    directory: Path,
    tokenizer: Tokenizer | None,
    config: dict[str, Any] | None = None,
    **others: object,
) -> None:
    """`others`: more files of JSON by their names, without the suffix."""
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))
    files = {"tokenizer_config": {"chat_template": TEMPLATE} | (config or {}), "config": MIXTRAL, **others}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def added(tokenizer: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def undeclared(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary; no token of it is among the added ones."""
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(fields))


def framed(single: str) -> Tokenizer:
    tokenizer = train_byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def next_id(tokenizer: Tokenizer) -> int:
    return tokenizer.get_vocab_size()


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}
LAST = next_id(train_byte_level())
SPACES = AddedToken("<a b>", lstrip=True, rstrip=True, normalized=False)
WORD = AddedToken("fox", single_word=True, normalized=True)
TYPED = {"__type": "AddedToken", "content": "</s>", "lstrip": True, "normalized": False, "rstrip": False}

ODD: dict[str, Build] = {
    "nothing but tokenizer.json": lambda d: write(d, train_byte_level()),
    "names in tokenizer_config": lambda d: write(d, train_byte_level(), BOTH),
    "end of turn in added_tokens_decoder": lambda d: write(
        d, train_byte_level(), {"added_tokens_decoder": {str(LAST): IM_END}, "eos_token": "<|im_end|>"}
    ),
    "end of turn as eos_token": lambda d: write(d, train_byte_level(), {"eos_token": "<|im_end|>"}),
    "end of turn in additional_special_tokens": lambda d: write(
        d, train_byte_level(), {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], **BOTH}
    ),
    "end of turn in added_tokens.json": lambda d: write(
        d, train_byte_level(), BOTH, added_tokens={"<|im_end|>": LAST, "<|im_start|>": LAST + 1}
    ),
    "end of turn in added_tokens.json and special": lambda d: write(
        d, train_byte_level(), added_tokens={"<|im_end|>": LAST}, special_tokens_map={"eos_token": "<|im_end|>"}
    ),
    "names in special_tokens_map": lambda d: write(
        d, train_byte_level(), special_tokens_map={"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": True}}
    ),
    "special_tokens_map beside added_tokens_decoder": lambda d: write(
        d, train_byte_level(), {"added_tokens_decoder": {str(LAST): IM_END}}, special_tokens_map=BOTH
    ),
    "in the vocabulary, not among the added": lambda d: write(d, undeclared(train_byte_level()), BOTH),
    "add_bos_token": lambda d: write(d, train_byte_level(), {"add_bos_token": True, "add_eos_token": True, **BOTH}),
    "tokenizer.json begins": lambda d: write(d, framed("<s> $A"), {"add_bos_token": False, **BOTH}),
    "tokenizer.json begins and ends": lambda d: write(d, framed("<s> $A </s>"), BOTH),
    "split_special_tokens": lambda d: write(d, framed("<s> $A"), {"split_special_tokens": True, **BOTH}),
    "image_token": lambda d: write(d, train_byte_level(), {"image_token": "<|user|>", **BOTH}),
    "extra_special_tokens by name": lambda d: write(
        d, train_byte_level(), {"extra_special_tokens": {"image_token": "<image>"}, **BOTH}
    ),
    "extra_special_tokens": lambda d: write(d, train_byte_level(), {"extra_special_tokens": ["<|im_end|>"], **BOTH}),
    "special_tokens_map with extra ones": lambda d: write(
        d, train_byte_level(), special_tokens_map={"extra_special_tokens": ["<|im_start|>", PLAIN], **BOTH}
    ),
    "tokens that strip": lambda d: write(d, added(train_byte_level(), SPACES, WORD), BOTH | {"eos_token": TYPED}),
    "truncating and padding": lambda d: write(d, cutting(train_byte_level()), BOTH),
    "sentencepiece": lambda d: write(d, build_sentencepiece_like(), {"tokenizer_class": "LlamaTokenizer", **BOTH}),
    "sentencepiece, not among the added": lambda d: write(d, undeclared(build_sentencepiece_like()), BOTH),
    "words": lambda d: write(d, build_metaspace(), {"tokenizer_class": "PreTrainedTokenizerFast", **BOTH}),
    "of GPT-2's class": lambda d: write(d, train_byte_level(), {"tokenizer_class": "GPT2Tokenizer", **BOTH}),
    "of Llama's class": lambda d: write(d, train_byte_level(), {"tokenizer_class": "LlamaTokenizerFast", **BOTH}),
    "of Qwen's class": lambda d: write(d, framed("<s> $A"), {"tokenizer_class": "Qwen2Tokenizer", **BOTH}),
    "clean_up of BPE": lambda d: write(d, train_byte_level(), {"clean_up_tokenization_spaces": True, **BOTH}),
}


def cutting(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    return tokenizer
