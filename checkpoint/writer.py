"""Writes a Mixtral checkpoint in Hugging Face format: safetensors files of bounded size, an index, config.json.

The naming is that of `block_sparse_moe` (checkpoint/experts.py), which every transformers release reads.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.config import CONFIG_FILE, MixtralConfig
from model.end_tokens import GENERATION_FILE
from model.rope_scaling import rope_json
from model.routing import FIELD, Routing

MAX_FILE_BYTES = 5_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "added_tokens.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"


def write_checkpoint(
    directory: Path,
    config: MixtralConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype_name: str,
    tokenizer: Path | None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a model into a new or empty directory; whoever reads sees all of it or nothing.

    Args:
        tensors: By their names in the checkpoint, in the dtype that they are to be stored in; taken one by one, so that
            a model larger than memory can be written.
        dtype_name: What config.json says that they are stored in.
        tokenizer: Where the tokenizer's files are; None: none are copied.

    Raises:
        FileExistsError: The directory holds something, or cannot be replaced.
        OSError: It cannot be written.
    """
    directory = directory.resolve()  # of a link, what it leads to is replaced
    scratch = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    _check_replaceable(directory, scratch)
    scratch.mkdir(parents=True)
    try:
        _write_tensors(scratch, tensors, max_file_bytes)
        _write_json(scratch / CONFIG_FILE, config_json(config, dtype_name))
        ids = list(config.eos_token_ids)
        generation = {"bos_token_id": config.bos_token_id, "eos_token_id": ids[0] if len(ids) == 1 else ids or None}
        _write_json(scratch / GENERATION_FILE, {name: value for name, value in generation.items() if value is not None})
        if tokenizer is not None:
            copy_tokenizer(tokenizer, scratch)
        if directory.exists():
            directory.rmdir()
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_replaceable(directory: Path, scratch: Path) -> None:
    """Does nothing if a directory is not there, or empty and can be replaced: found out before hours of writing.

    Raises:
        FileExistsError: It is something else.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; give a new directory")
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; give a new directory")
    if directory == Path.cwd():  # whoever is in it would see it empty for ever
        raise FileExistsError(f"{directory} is the current folder; give a new directory, or go to another folder")
    try:
        directory.rename(scratch)
        scratch.rename(directory)
    except OSError as error:  # a volume that is mounted there, say
        what = f"{directory} cannot be replaced ({error.strerror})"
        raise FileExistsError(f"{what}; give a new directory, if this is a mounted volume one in it") from error


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes one safetensors file, with the mode that the umask allows; the tensors are contiguous and share no memory.

    Raises:
        OSError: It cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would let nobody else read it
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    with suppress(OSError):  # some mounts know no modes
        path.chmod(mode)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files from one directory into another.

    Raises:
        OSError: They cannot be read or written.
    """
    templates = [f"{TEMPLATE_FOLDER}/{path.name}" for path in (source / TEMPLATE_FOLDER).glob("*.jinja")]
    for name in (*TOKENIZER_FILES, *templates):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def config_json(config: MixtralConfig, dtype_name: str) -> dict[str, Any]:
    """Returns config.json, with the fields of old and of new transformers."""
    ids = list(config.eos_token_ids)
    return _routing_json(config.routing) | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.top_k,
        "vocab_size": config.vocab_size,
        "sliding_window": config.window,
        "max_position_embeddings": config.max_context,
        **rope_json(config.rope_theta, config.rope_scaling),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids[0] if len(ids) == 1 else ids or None,
        "torch_dtype": dtype_name,
        "dtype": dtype_name,
        "attention_dropout": 0.0,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
        "use_cache": True,
    }


def _routing_json(routing: Routing) -> dict[str, Any]:
    if routing.level == "token":
        return {}
    which = {"positions": routing.positions} if routing.level == "sentence" else {"tasks": list(routing.tasks)}
    return {FIELD: {"level": routing.level, **which}}


def _write_tensors(directory: Path, tensors: Iterable[tuple[str, Tensor]], max_file_bytes: int) -> None:
    files: list[tuple[Path, list[str]]] = []
    total = 0
    for number, part in enumerate(_parts(tensors, max_file_bytes), start=1):
        path = directory / f"part-{number:05d}.safetensors"
        save_tensors(path, part)
        files.append((path, list(part)))
        total += sum(tensor.nbytes for tensor in part.values())
    if len(files) == 1:
        files[0][0].rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(directory / name)
        weight_map.update(dict.fromkeys(names, name))
    _write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _parts(tensors: Iterable[tuple[str, Tensor]], max_file_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Yields what belongs into one file each."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > max_file_bytes:
            yield part
            part, size = {}, 0
        part[name] = tensor.contiguous()
        size += tensor.nbytes
    yield part


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
