"""A run's folder from elsewhere: its checkpoint, metrics and token store are read, or refused by the errors for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from safetensors.torch import save

from model.config import MixtralConfig
from tests.fuzz.folder import Folder
from tests.fuzz.material import Material
from training.data_errors import StoreError
from training.export import config_of, exported, find_checkpoint
from training.manifest import MANIFEST_FILE, Part, StoredTensor, manifest_text
from training.metrics import METRICS_FILE, Follower, MetricsError, read_metrics
from training.progress import CHECKPOINT_FOLDER, FORMAT, PROGRESS_FILE, CheckpointError, checkpoint_name
from training.tokens import OFFSETS, STORE, TASKS, TOKENS, TokenStore

WORDS = tuple(
    word.encode()
    for word in (
        '"format"', '"progress"', '"step"', '"samples_seen"', '"data"', '"config"', '"hidden_size"', '"num_layers"',
        '"tensors"', '"dtype"', '"F32"', '"BF16"', '"I64"', '"shape"', '"parts"', '"file"', '"start"', '"stop"',
        '"rank-00000-of-00001-00000.safetensors"', '"parameters.embedding"', '"data_offsets"', '"__metadata__"',
        '"format_version"', '"origin"', '"num_documents"', '"num_tokens"', '"task_names"', '"vocab_size"',
        '{"step":1}\n', "null", "true", "-1", "1e999", "281474976710655", "281474976710656", "[[[[[[[[",
    )
)  # fmt: skip
CONFIG = MixtralConfig(
    hidden_size=2, ffn_size=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, num_experts=2, top_k=1,
    vocab_size=4, max_context=8, window=None, rope_theta=1e4, norm_eps=1e-5, tie_embeddings=False, bos_token_id=None,
    eos_token_ids=(1,), dtype="float32",
)  # fmt: skip
SHAPES = {
    "embedding": (4, 2), "final_norm": (2,), "lm_head": (4, 2), "layers.0.input_norm": (2,),
    "layers.0.post_norm": (2,), "layers.0.attention.qkv": (6, 2), "layers.0.attention.output": (2, 2),
    "layers.0.moe.gate": (2, 2), "layers.0.moe.gate_up": (2, 4, 2), "layers.0.moe.down": (2, 2, 2),
}  # fmt: skip
SHARD = "rank-00000-of-00001-00000.safetensors"
STEP = 2
SAID = {"step": STEP, "samples_seen": 8, "data": "of a test"}
NAMED = {f"parameters.{name}": shape for name, shape in SHAPES.items()}
TENSORS = {name: StoredTensor("F32", shape, (Part(SHARD, 0, shape[0]),)) for name, shape in NAMED.items()}
WHOLE = {
    PROGRESS_FILE: json.dumps({"format": FORMAT, "progress": SAID, "config": asdict(CONFIG)}).encode(),
    MANIFEST_FILE: manifest_text(TENSORS).encode(),
    SHARD: save({name: torch.ones(shape) for name, shape in NAMED.items()}),
}
ARRAYS = {TOKENS: bytes(12), OFFSETS: b"".join(at.to_bytes(8, "little") for at in (0, 3, 6)), TASKS: bytes(8)}
MAX_ERROR_CHARS = 2000  # what an error repeats of a file is bounded
_run = Folder().path
_checkpoint = _run / CHECKPOINT_FOLDER / checkpoint_name(STEP)
_checkpoint.mkdir(parents=True)


def one(data: bytes) -> None:
    material = Material(data)
    kind = material.number(6)
    content = material.rest()
    if kind < 4:
        name = (PROGRESS_FILE, MANIFEST_FILE, SHARD, SHARD)[kind]
        _export({**WHOLE, name: _with_header(content) if kind == 3 else content})
    elif kind == 4:
        (_run / METRICS_FILE).write_bytes(content)
        for read in (read_metrics, Follower):
            try:
                read(_run)
            except MetricsError as error:
                assert len(str(error)) < MAX_ERROR_CHARS
    else:
        _open_store(content)


def _export(files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (_checkpoint / name).write_bytes(content)
    try:
        found = find_checkpoint(_run, None)
        config = config_of(found)
        for _, tensor in exported(found, config):
            assert tensor.numel() <= len(files[SHARD]), "memory was made for what no file holds"
    except CheckpointError as error:
        assert str(_checkpoint) in str(error)
        assert len(str(error)) < MAX_ERROR_CHARS


def _open_store(said: bytes) -> None:
    for name, content in {**ARRAYS, STORE: said}.items():
        (_run / name).write_bytes(content)
    try:
        store = TokenStore.open(_run)
    except StoreError as error:
        assert len(str(error)) < MAX_ERROR_CHARS
        return
    assert sum(len(store.document(index)) for index in range(store.info.num_documents)) == store.info.num_tokens


def _with_header(header: bytes) -> bytes:
    """The tensors' file with another header, whose length is right: guessing that would take a fuzzer for ever."""
    whole = WHOLE[SHARD]
    data = whole[8 + int.from_bytes(whole[:8], "little") :]
    return len(header).to_bytes(8, "little") + header + data
