"""The weights that each role needs, read from a checkpoint and laid out for its matrix products.

Each function reads only its own role's tensors. Results are owned, contiguous CPU tensors of the requested dtype.
Shapes: V vocabulary, D model dim, F expert hidden dim, E experts, H query heads, G key/value heads, S head dim (of a
task gate: tasks), N = (H + 2G) * S rows of the joint projection, M = H * S columns of the output projection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from checkpoint.errors import MissingTensor
from checkpoint.experts import TensorPart, detect_naming, expert_parts, gate_name, task_gate_name
from checkpoint.reader import CheckpointReader
from model.config import MixtralConfig

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

    Raises CheckpointError (see checkpoint/errors.py) naming the file and the tensor.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    embedding_VD = _read(reader, dtype, TensorPart("model.embed_tokens.weight", vocabulary))
    layers: list[AttentionLayerWeights] = []
    for layer in range(config.num_layers):
        layers.append(_read_attention_layer(reader, config, dtype, layer))
        if progress is not None:
            progress(layer + 1, config.num_layers)
    final_norm_D = _read(reader, dtype, TensorPart("model.norm.weight", (config.hidden_size,)))
    lm_head_VD = embedding_VD if config.tie_embeddings else _read_lm_head(reader, config, dtype)
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
            part = TensorPart(task_gate_name(naming, layer), (num_tasks, config.num_experts))
        else:
            part = TensorPart(gate_name(naming, layer), (config.num_experts, config.hidden_size))
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


def _read_attention_layer(
    reader: CheckpointReader, config: MixtralConfig, dtype: torch.dtype, layer: int
) -> AttentionLayerWeights:
    hidden, query, key_value = config.hidden_size, config.query_size, config.key_value_size
    prefix = f"model.layers.{layer}"
    qkv = [
        TensorPart(f"{prefix}.self_attn.{which}_proj.weight", (rows, hidden))
        for which, rows in (("q", query), ("k", key_value), ("v", key_value))
    ]
    return AttentionLayerWeights(
        input_norm_D=_read(reader, dtype, TensorPart(f"{prefix}.input_layernorm.weight", (hidden,))),
        qkv_ND=_read(reader, dtype, *qkv),
        output_DM=_read(reader, dtype, TensorPart(f"{prefix}.self_attn.o_proj.weight", (hidden, query))),
        post_norm_D=_read(reader, dtype, TensorPart(f"{prefix}.post_attention_layernorm.weight", (hidden,))),
    )


def _read_lm_head(reader: CheckpointReader, config: MixtralConfig, dtype: torch.dtype) -> torch.Tensor:
    part = TensorPart("lm_head.weight", (config.vocab_size, config.hidden_size))
    if part.name not in reader:
        remedy = "If the model uses its embedding as LM head, set tie_word_embeddings to true in config.json."
        raise MissingTensor(str(reader.directory), f"no file holds the tensor {part.name}.", remedy)
    return _read(reader, dtype, part)


def _read(reader: CheckpointReader, dtype: torch.dtype, *parts: TensorPart) -> torch.Tensor:
    """The parts stacked by rows, in memory of their own (what the reader returns may map the file)."""
    tensors: Sequence[torch.Tensor] = [reader.read_part(part.name, part.shape, part.index) for part in parts]
    return torch.cat([tensor.to(dtype) for tensor in tensors])
