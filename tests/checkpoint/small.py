"""A small random checkpoint, and ways to damage it; what transformers makes of it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

from checkpoint.reader import CheckpointReader
from checkpoint.weights import read_attention_weights, read_expert_layer, read_gates
from manta.local import LocalModel
from model.config import read_config
from protos.generation_pb2 import Sampling
from tests.local_driver import Wish, run
from tests.oracle import Oracle
from tests.random_checkpoint import IMPLEMENTATIONS, make_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, LM_HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Tensors = dict[str, torch.Tensor]


def make_small(directory: Path, **options: object) -> MixtralForCausalLM:
    """One file of 2 layers and 4 experts, without a tokenizer unless it is asked for."""
    sizes: dict[str, object] = {"hidden_size": 32, "ffn_size": 48, "num_experts": 4, "seed": 5, "with_tokenizer": False}
    return make_checkpoint(directory, **sizes | options)


def edit_weights(directory: Path, edit: Callable[[Tensors], object], file: str = WEIGHTS) -> None:
    """Rewrites a weights file after `edit` has changed its tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / file).items()}
    edit(tensors)
    save_file(tensors, directory / file, {"format": "pt"})


def edit_json(path: Path, **fields: object) -> None:
    """Sets fields of a JSON object; a value of ... removes one."""
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


def read_all(directory: Path) -> None:
    """Reads whatever the roles read."""
    config = read_config(directory)
    with CheckpointReader(directory) as reader:
        read_attention_weights(reader, config, torch.float32)
        read_gates(reader, config, torch.float32)
        for layer in range(config.num_layers):
            for expert in range(config.num_experts):
                read_expert_layer(reader, config, layer, expert, torch.float32)


def check_like_transformers(directory: Path) -> MixtralForCausalLM:
    """Asserts that greedy tokens are those of what transformers loads from the directory, and returns that."""
    theirs = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32, **IMPLEMENTATIONS).eval()
    prompt = [5, 6, 7, 8, 9, 10, 11]
    (outcome,) = run(LocalModel(directory), [Wish(prompt, Sampling(max_tokens=12, ignore_eos=True))])
    Oracle(theirs).check_greedy(prompt, outcome.tokens)
    return theirs
