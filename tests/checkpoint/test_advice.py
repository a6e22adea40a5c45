"""What is said of a directory that cannot be used is true, and following it helps."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from checkpoint.errors import (
    CheckpointError,
    ForeignCheckpoint,
    MissingFile,
    MissingTensor,
    TruncatedFile,
    UnreadableFile,
)
from checkpoint.reader import CheckpointReader
from model.config import read_config
from model.errors import ConfigError, ModelError
from tests.checkpoint.small import (
    INDEX,
    NORM,
    WEIGHTS,
    check_like_transformers,
    edit_json,
    edit_weights,
    make_small,
    read_all,
)

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4913280\n"


def refusal(directory: Path, kind: type[ModelError]) -> ModelError:
    with pytest.raises(kind) as caught:
        read_all(directory)
    assert str(directory) in caught.value.where
    assert caught.value.remedy
    return caught.value


def test_the_conversion_of_pickled_weights_works(tmp_path: Path) -> None:
    """Whatever the path holds: the command is pasted in a shell and run."""
    directory = tmp_path / 'it\'s a "model" $HOME'
    model = make_small(directory)
    (directory / WEIGHTS).unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    error = refusal(directory, ForeignCheckpoint)
    assert error.where.endswith("pytorch_model.bin")
    [command] = re.findall(r"`(python -c .*)`", error.remedy)
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=120, cwd=tmp_path, capture_output=True)
    check_like_transformers(tmp_path / "CONVERTED")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], "copy pytorch_model.bin.index.json"),
        (["consolidated.00.pth"], "consolidated.00.pth under such names"),
        (["mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    ],
)
def test_what_transformers_does_not_load_is_not_to_be_converted(tmp_path: Path, names: list[str], words: str) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    for name in [*names, "training_args.bin"]:
        (tmp_path / name).write_bytes(b"pickled")
    error = refusal(tmp_path, ForeignCheckpoint)
    assert words in error.remedy
    assert "python -c" not in error.remedy
    assert "pickles are not read" in error.problem


def test_gguf(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "mixtral.Q4_K_M.gguf")
    assert refusal(tmp_path, ForeignCheckpoint).where.endswith(".gguf")


def test_weights_that_are_quantized_without_a_word_in_config(tmp_path: Path) -> None:
    """GPTQ's, whose settings lie in a file of their own."""
    make_small(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    packed = {f"{name}.qweight": torch.zeros(4, 32, dtype=torch.int32)}
    edit_weights(tmp_path, lambda tensors: (tensors.pop(f"{name}.weight"), tensors.update(packed)))
    error = refusal(tmp_path, ForeignCheckpoint)
    assert f"{name}.weight is stored quantized" in error.problem
    assert "unquantized" in error.remedy


def test_an_adapter_that_was_not_merged(tmp_path: Path) -> None:
    """Saved whole, with the adapter's tensors beside those that it changes."""
    make_small(tmp_path)

    def wrap(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "q_proj" in name]:
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.base_layer.weight"] = tensors.pop(name)
            tensors[f"{stem}.lora_A.default.weight"] = torch.ones(2, 32)
            tensors[f"{stem}.lora_B.default.weight"] = torch.ones(32, 2)

    edit_weights(tmp_path, wrap)
    error = refusal(tmp_path, ForeignCheckpoint)
    assert "q_proj.base_layer.weight, beside an adapter (LoRA)" in error.problem
    assert "merge_and_unload()" in error.remedy


@pytest.mark.parametrize("dtype", ["auto", "float8_e4m3fn", 16])
def test_a_type_that_no_weight_has(tmp_path: Path, dtype: object) -> None:
    model = make_small(tmp_path, dtype="bfloat16")
    edit_json(tmp_path / "config.json", dtype=..., torch_dtype=dtype)
    error = refusal(tmp_path, ConfigError)
    assert error.remedy == "Remove the field from config.json: the type that the weights are stored in counts then."
    edit_json(tmp_path / "config.json", torch_dtype=...)
    assert read_config(tmp_path).dtype == str(model.dtype).removeprefix("torch.") == "bfloat16"


def test_an_adapter(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refusal(tmp_path, ForeignCheckpoint).remedy


def test_optimizer_states_are_no_weights(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "optimizer.pt").write_bytes(b"pickled")
    assert "neither model.safetensors nor" in refusal(tmp_path, MissingFile).problem


def test_weights_under_another_name(tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "weights.safetensors")
    error = refusal(tmp_path, MissingFile)
    assert "it has weights.safetensors" in error.problem
    assert "rename it to model.safetensors" in error.remedy
    (tmp_path / "weights.safetensors").rename(tmp_path / WEIGHTS)
    read_all(tmp_path)


def test_shards_without_their_index(tmp_path: Path) -> None:
    make_small(tmp_path, max_shard_size="20KB")
    (tmp_path / INDEX).unlink()
    assert "copy model.safetensors.index.json too" in refusal(tmp_path, MissingFile).remedy


def test_a_left_over_file_that_hides_the_shards(tmp_path: Path) -> None:
    make_small(tmp_path, max_shard_size="20KB")
    shutil.copy(sorted(tmp_path.glob("model-*.safetensors"))[0], tmp_path / WEIGHTS)
    error = refusal(tmp_path, MissingTensor)
    assert error.where == str(tmp_path / WEIGHTS)
    assert f"hides the shards that {INDEX} lists" in error.problem
    assert "move this file away" in error.remedy
    (tmp_path / WEIGHTS).unlink()
    read_all(tmp_path)


def test_weights_of_zero_size(tmp_path: Path) -> None:
    make_small(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.zeros(0) for name in tensors}))
    error = refusal(tmp_path, ForeignCheckpoint)
    assert "is empty (shape [0])" in error.problem
    assert "ZeRO-3" in error.remedy
    assert "config.json" not in error.remedy


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "generation_config.json", INDEX])
def test_git_lfs_pointers(tmp_path: Path, name: str) -> None:
    make_small(tmp_path, max_shard_size="20KB" if name == INDEX else None)
    (tmp_path / name).write_bytes(LFS)
    error = refusal(tmp_path, ConfigError if "config" in name else TruncatedFile)
    assert error.where == str(tmp_path / name)
    assert "git-lfs pointer" in error.problem
    assert "git lfs pull" in error.remedy


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "generation_config.json", INDEX, "a shard"])
def test_links_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    """As a snapshot of the hub's cache has them, copied as they are: nothing is renamed, nothing passed over."""
    make_small(tmp_path, max_shard_size="20KB" if name in (INDEX, "a shard") else None)
    if name == "a shard":
        name = sorted(tmp_path.glob("model-*.safetensors"))[0].name
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("../../blobs/0123456789abcdef")
    error = refusal(tmp_path, ConfigError if "config" in name else MissingFile)
    assert error.where == str(tmp_path / name)
    assert "link to a file that does not exist" in error.problem
    assert "cp -rL" in error.remedy


def test_a_pipe_in_place_of_the_index_is_not_waited_for(tmp_path: Path) -> None:
    make_small(tmp_path, max_shard_size="20KB")
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    assert "it is a pipe" in refusal(tmp_path, UnreadableFile).problem


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_link_to_a_pipe_in_place_of_a_configuration_is_not_waited_for(name: str, tmp_path: Path) -> None:
    make_small(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / name).symlink_to("pipe")
    assert "a pipe or a device, and no file" in refusal(tmp_path, ConfigError).problem


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_a_key_that_is_given_twice(tmp_path: Path, name: str) -> None:
    """Whoever added the second one may have meant the first."""
    make_small(tmp_path, max_shard_size="20KB")
    text = (tmp_path / name).read_text()
    first, value = next(iter(json.loads(text).items()))
    (tmp_path / name).write_text(f'{{"{first}": {json.dumps(value)}, {text.strip()[1:]}')
    error = refusal(tmp_path, ConfigError if "config" in name else TruncatedFile)
    assert error.problem == f'the file gives "{first}" twice.'
    assert "Keep the one that is meant" in error.remedy


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
def test_other_codings(tmp_path: Path, coding: str, name: str) -> None:
    """Copied again, it would be as before: it has to be saved otherwise."""
    make_small(tmp_path, max_shard_size="20KB")
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text, encoding=coding)
    error = refusal(tmp_path, ConfigError if "config" in name else TruncatedFile)
    assert error.remedy == "Save it as UTF-8 without a byte-order mark."
    (tmp_path / name).write_text(text, encoding="utf-8")
    read_all(tmp_path)


def test_a_quantization_that_is_only_said(tmp_path: Path) -> None:
    make_small(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "awq"})
    assert "not quantized: remove the field" in refusal(tmp_path, ConfigError).remedy
    edit_json(tmp_path / "config.json", quantization_config=...)
    read_all(tmp_path)


def test_a_quantization_that_is_one(tmp_path: Path) -> None:
    make_small(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)}))
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "awq"})
    assert "Give the unquantized checkpoint" in refusal(tmp_path, ConfigError).remedy


def test_a_folder_where_a_shard_should_be(tmp_path: Path) -> None:
    make_small(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    shard.mkdir()
    error = refusal(tmp_path, CheckpointError)
    assert error.where == str(shard)
    assert "a folder, not a weights file" in error.problem


@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
def test_a_folder_in_place_of_the_weights(tmp_path: Path, name: str) -> None:
    make_small(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / name).mkdir()
    assert "a folder" in refusal(tmp_path, CheckpointError).problem


@contextmanager
def without_rights() -> Iterator[None]:
    """Inside, files that nobody may read cannot be read: root can, so this user is another one then."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["shard", INDEX, "config.json", "generation_config.json"])
def test_files_that_may_not_be_read(tmp_path: Path, name: str) -> None:
    make_small(tmp_path / "model", max_shard_size="20KB")
    directory = tmp_path / "model"
    let_through(tmp_path)
    path = sorted(directory.glob("model-*"))[0] if name == "shard" else directory / name
    for file in directory.iterdir():
        file.chmod(0o644)
    path.chmod(0)
    with without_rights():
        error = refusal(directory, ModelError)
    assert error.where == str(path)
    assert "ermission" in str(error) or "read it" in error.remedy


def test_a_directory_that_may_not_be_entered(tmp_path: Path) -> None:
    make_small(tmp_path / "model")
    let_through(tmp_path)
    (tmp_path / "model").chmod(0)
    try:
        with without_rights():
            with pytest.raises(ConfigError, match="cannot be read"):
                read_config(tmp_path / "model")
            with pytest.raises(CheckpointError, match="may not be read"):
                CheckpointReader(tmp_path / "model")
    finally:
        (tmp_path / "model").chmod(0o700)


def let_through(path: Path) -> None:
    """Lets every user pass pytest's folders."""
    for folder in (path, path.parent, path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)


def test_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "0123abc"
    make_small(snapshot)
    with pytest.raises(ConfigError, match=f"snapshots, such as {snapshot}") as caught:
        read_config(tmp_path / "models--me--mine")
    assert "hub's cache" in caught.value.remedy
    read_all(snapshot)


def test_a_shard_name_that_is_none(tmp_path: Path) -> None:
    make_small(tmp_path, max_shard_size="20KB")
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    for name in ("a\0.safetensors", "\ud800.safetensors"):
        edit_json(tmp_path / INDEX, weight_map=weight_map | {NORM: name})
        assert "without a folder" in refusal(tmp_path, ForeignCheckpoint).remedy
    edit_json(tmp_path / INDEX, weight_map=weight_map | {NORM: "a" * 300 + ".safetensors"})
    assert "too long" in refusal(tmp_path, CheckpointError).problem
