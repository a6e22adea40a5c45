"""The weights that each role needs, read from a checkpoint and laid out for its matrix products.

Each function reads only its own role's tensors. Results are owned, contiguous CPU tensors of the requested dtype.
Shapes: V vocabulary, D model dim, F expert hidden dim, E experts, H query heads, G key/value heads, S head dim (of a
task gate: tasks), N = (H + 2G) * S rows of the joint projection, M = H * S columns of the output projection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from checkpoint.errors import MissingTensor
from checkpoint.experts import (
    EXPERTS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCABULARY,
    TensorPart,
    detect_naming,
    expert_parts,
    gate_name,
    read_part,
    task_gate_name,
)
from checkpoint.reader import CheckpointReader
from model.config import MixtralConfig
from model.dtypes import torch_dtype

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
Progress = Callable[[int, int], None]  # (parts read so far, parts in all)


@dataclass
class AttentionLayerWeights:
    """The dense weights of one layer."""

    input_norm_D: torch.Tensor
    qkv_ND: torch.Tensor  # query rows, then key rows, then value rows
    output_DM: torch.Tensor
    post_norm_D: torch.Tensor


@dataclass
class AttentionWeights:
    """All that an attention node holds. `lm_head_VD` is `embedding_VD` itself when the model ties them."""

    embedding_VD: torch.Tensor
    layers: list[AttentionLayerWeights]
    final_norm_D: torch.Tensor
    lm_head_VD: torch.Tensor


@dataclass
class ExpertLayerWeights:
    """One expert's FFN in one layer, or some columns of it: gate's rows (w1), then up's (w3); and down (w2)."""

    gate_up_2FD: torch.Tensor
    down_DF: torch.Tensor


def read_attention_weights(
    reader: CheckpointReader, config: MixtralConfig, dtype: torch.dtype, progress: Progress | None = None
) -> AttentionWeights:
    """Embedding, attention, norms and LM head; no gate and no expert. `progress` is called after each layer.

    A model whose config.json ties embedding and LM head has one of them stored, or both; if both are and differ, they
    are not tied (`as_tied`), as in transformers. Raises CheckpointError (see checkpoint/errors.py) naming the file and
    the tensor.
    """
    config = as_tied(reader, config)
    embedding_VD = _read(reader, dtype, embedding_part(reader, config))
    layers: list[AttentionLayerWeights] = []
    for layer in range(config.num_layers):
        layers.append(_read_attention_layer(reader, config, dtype, layer))
        if progress is not None:
            progress(layer + 1, config.num_layers)
    final_norm_D = _read(reader, dtype, final_norm_part(config))
    lm_head_VD = embedding_VD if config.tie_embeddings else _read(reader, dtype, lm_head_part(reader, config))
    return AttentionWeights(embedding_VD, layers, final_norm_D, lm_head_VD)


def read_gates(
    reader: CheckpointReader, config: MixtralConfig, dtype: torch.dtype, progress: Progress | None = None
) -> list[torch.Tensor]:
    """Each layer's gate: all that a router holds. `progress` is called after each layer.

    At routing level task it is the layer's task_gate_SE, else its gate_ED. Raises CheckpointError naming the file and
    the tensor.
    """
    naming = detect_naming(reader)
    num_tasks = len(config.routing.tasks)
    gates: list[torch.Tensor] = []
    for layer in range(config.num_layers):
        if num_tasks:
            shape, fields = (num_tasks, config.num_experts), ("the number of manta_routing.tasks", EXPERTS)
            part = TensorPart(task_gate_name(naming, layer), shape, fields=fields)
        else:
            shape = config.num_experts, config.hidden_size
            part = TensorPart(gate_name(naming, layer), shape, fields=(EXPERTS, HIDDEN))
        gates.append(_read(reader, dtype, part))
        if progress is not None:
            progress(layer + 1, config.num_layers)
    return gates


def read_expert_layer(
    reader: CheckpointReader,
    config: MixtralConfig,
    layer: int,
    expert: int,
    dtype: torch.dtype,
    columns: slice | None = None,
) -> ExpertLayerWeights:
    """One expert's weights in one layer; with `columns`, only those FFN columns [start, stop) are read and returned.

    The outputs of disjoint column ranges add up to the whole expert's output. Raises CheckpointError naming the file
    and the tensor.
    """
    assert 0 <= layer < config.num_layers, f"layer {layer} of {config.num_layers}"
    assert 0 <= expert < config.num_experts, f"expert {expert} of {config.num_experts}"
    start, stop, step = (columns or slice(None)).indices(config.ffn_size)
    assert step == 1, f"columns {columns} must have step 1"
    assert start < stop, f"columns {columns} hold none of the {config.ffn_size} there are"
    gate, up, down = expert_parts(detect_naming(reader), config, layer, expert, slice(start, stop))
    return ExpertLayerWeights(_read(reader, dtype, gate, up), _read(reader, dtype, down))


def as_tied(reader: CheckpointReader, config: MixtralConfig) -> MixtralConfig:
    """The config with `tie_embeddings` as the weights have it: both stored, and different, are not tied.

    Raises CheckpointError naming the file and the tensor.
    """
    if not config.tie_embeddings or EMBEDDING not in reader or LM_HEAD not in reader:
        return config
    shape = config.vocab_size, config.hidden_size
    one, other = (
        read_part(reader, TensorPart(name, shape, fields=(VOCABULARY, HIDDEN))) for name in (EMBEDDING, LM_HEAD)
    )
    if one.dtype != other.dtype:  # what counts is what is computed with
        one, other = (each.to(torch_dtype(config.dtype)) for each in (one, other))
    return config if torch.equal(one, other) else replace(config, tie_embeddings=False)


def embedding_part(reader: CheckpointReader, config: MixtralConfig) -> TensorPart:
    """Where the embedding lies; the LM head is it, too, where they are tied and only that is stored."""
    name = LM_HEAD if config.tie_embeddings and EMBEDDING not in reader and LM_HEAD in reader else EMBEDDING
    return TensorPart(name, (config.vocab_size, config.hidden_size), fields=(VOCABULARY, HIDDEN))


def lm_head_part(reader: CheckpointReader, config: MixtralConfig) -> TensorPart:
    """Where the LM head of a model lies that does not tie it.

    Raises MissingTensor when there is none: most often the model is no causal language model.
    """
    if LM_HEAD not in reader:
        remedy = (
            "A model without one generates no text: give the MixtralForCausalLM itself, not its body (MixtralModel) or "
            "a classifier made of it."
        )
        raise MissingTensor(str(reader.directory), f"no file holds the tensor {LM_HEAD}.", remedy)
    return TensorPart(LM_HEAD, (config.vocab_size, config.hidden_size), fields=(VOCABULARY, HIDDEN))


def attention_parts(config: MixtralConfig, layer: int) -> dict[str, TensorPart]:
    """Where a layer's dense weights lie, by the names within the layer: all that it has besides gate and experts."""
    hidden, query, key_value = config.hidden_size, config.query_size, config.key_value_size
    prefix = f"model.layers.{layer}"

    def part(name: str, shape: tuple[int, ...], fields: tuple[str, ...]) -> tuple[str, TensorPart]:
        return name, TensorPart(f"{prefix}.{name}.weight", shape, fields=fields)

    return dict(
        (
            part("input_layernorm", (hidden,), (HIDDEN,)),
            part("self_attn.q_proj", (query, hidden), (HEADS, HIDDEN)),
            part("self_attn.k_proj", (key_value, hidden), (KV_HEADS, HIDDEN)),
            part("self_attn.v_proj", (key_value, hidden), (KV_HEADS, HIDDEN)),
            part("self_attn.o_proj", (hidden, query), (HIDDEN, HEADS)),
            part("post_attention_layernorm", (hidden,), (HIDDEN,)),
        )
    )


def final_norm_part(config: MixtralConfig) -> TensorPart:
    """Where the norm before the LM head lies."""
    return TensorPart("model.norm.weight", (config.hidden_size,), fields=(HIDDEN,))


def _read_attention_layer(
    reader: CheckpointReader, config: MixtralConfig, dtype: torch.dtype, layer: int
) -> AttentionLayerWeights:
    parts = attention_parts(config, layer)
    return AttentionLayerWeights(
        input_norm_D=_read(reader, dtype, parts["input_layernorm"]),
        qkv_ND=_read(reader, dtype, *(parts[f"self_attn.{which}_proj"] for which in "qkv")),
        output_DM=_read(reader, dtype, parts["self_attn.o_proj"]),
        post_norm_D=_read(reader, dtype, parts["post_attention_layernorm"]),
    )


def _read(reader: CheckpointReader, dtype: torch.dtype, *parts: TensorPart) -> torch.Tensor:
    """The parts stacked by rows, in memory of their own (what the reader returns may map the file)."""
    tensors: Sequence[torch.Tensor] = [read_part(reader, part) for part in parts]
    return torch.cat([tensor.to(dtype) for tensor in tensors])
