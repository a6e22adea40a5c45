"""Random Mixtral checkpoints in Hugging Face format, with a tokenizer: what most tests run on.

Weights are scaled so that routing, attention and logits vary with the input (transformers' own initialisation gives
nearly uniform ones, which hide mistakes). The same arguments always give the same files.
"""

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from model.dtypes import TORCH_DTYPES

SPECIAL_TOKENS = ("<s>", "</s>", "<unk>")  # token ids 0, 1, 2
NUM_BYTE_TOKENS = 256  # token ids 3..258: every byte, so that any text can be encoded
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


# The plain loop over experts is the easiest reference to trust.
IMPLEMENTATIONS: dict[str, Any] = {"attn_implementation": "sdpa", "experts_implementation": "eager"}


def make_checkpoint(
    directory: Path,
    *,
    hidden_size: int = 64,
    ffn_size: int = 96,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    window: int | None = None,
    num_experts: int = 8,
    top_k: int = 2,
    vocab_size: int = 320,
    tie: bool = False,
    dtype: str = "float32",
    seed: int,
    max_context: int = 4096,
    head_dim: int | None = None,
    fused_names: bool = False,
    max_shard_size: str | None = None,
    with_tokenizer: bool = True,
    rope: dict[str, Any] | None = None,
) -> MixtralForCausalLM:
    """Write a random Mixtral model into `directory` and return it, in eval mode.

    `fused_names` chooses the naming of the experts' tensors, `max_shard_size` ("100KB") cuts the weights in shards, and
    `rope` is config.json's `rope_parameters` (some kinds need a `head_dim` there: transformers does not derive it).
    Raises ValueError when a tokenizer is wanted and `vocab_size` is too small for one (259).
    """
    config = MixtralConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=ffn_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=window,
        max_position_embeddings=max_context,
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        tie_word_embeddings=tie,
        bos_token_id=0,
        eos_token_id=1,
        rope_parameters=rope,
        **IMPLEMENTATIONS,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator; leave that alone
        model = MixtralForCausalLM(config)
    _randomize(model, seed)
    _convert(model, TORCH_DTYPES[dtype])
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.save_pretrained(directory, save_original_format=not fused_names, **sharding)
    if with_tokenizer:
        make_tokenizer(vocab_size).save_pretrained(directory)
    return model.eval()


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most `vocab_size` tokens: <s>, </s>, <unk>, 256 bytes, then pairs of letters.

    Encoding a text puts <s> before it, as Mixtral's own tokenizer does. Up to 961 tokens every id can be decoded.
    Raises ValueError below 259.
    """
    fixed = (*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    if vocab_size < len(fixed):
        raise ValueError(f"vocab_size is {vocab_size}, but a tokenizer needs {len(fixed)}; or use with_tokenizer=False")
    letters = "etaoinshrdlcumwfgypbvkjxqz"  # most frequent first, so that small vocabularies merge something
    pairs = [(first, second) for first in f"Ġ{letters}" for second in letters][: vocab_size - len(fixed)]
    tokens = (*fixed, *(first + second for first, second in pairs))
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _convert(model: MixtralForCausalLM, dtype: torch.dtype) -> None:
    # Parameters alone: model.to(dtype) would round the rotary frequencies too, which from_pretrained never does.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def _randomize(model: MixtralForCausalLM, seed: int) -> None:
    """Norm weights around 1, everything else normal with a variance that keeps activations of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            # 1.6 / sqrt(fan in) is 0.2 at a hidden size of 64: attention and gates are clearly not uniform.
            parameter.normal_(std=1.6 / math.sqrt(parameter.shape[-1]), generator=generator)
