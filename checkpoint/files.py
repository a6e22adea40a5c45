"""Which files hold a checkpoint's weights, and whether they are whole.

A safetensors file is: 8 bytes header length (little-endian), a JSON header of name -> {dtype, shape, data_offsets}, and
the tensors' bytes, packed without gaps. So a file that is cut off shows in its length alone, before any weight is read.
Source of the format: the README of the safetensors project.
"""

import json
import struct
from pathlib import Path, PurePath
from typing import cast

from checkpoint.errors import ForeignCheckpoint, MissingFile, TruncatedFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_COPY_AGAIN = "Download or copy the file again; if you saved it yourself, save the model again."


def find_weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> name of the file in `directory` that holds it, for a single file or for shards with an index.

    Raises MissingFile, TruncatedFile, or ForeignCheckpoint when there are weights but none in safetensors format.
    """
    if (directory / SINGLE_FILE).is_file():
        return dict.fromkeys(tensor_names(directory / SINGLE_FILE), SINGLE_FILE)
    if (directory / INDEX_FILE).is_file():
        return _read_index(directory / INDEX_FILE)
    raise _no_weights(directory)


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in one safetensors file, after checking that the file is whole.

    Raises MissingFile when it does not exist, TruncatedFile when its length is not what its header says.
    """
    try:
        size_bytes = path.stat().st_size
        header, header_bytes = _read_header(path, size_bytes)
    except FileNotFoundError as error:
        remedy = f"Copy it into the directory; {INDEX_FILE} lists every file that belongs to the checkpoint."
        raise MissingFile(str(path), "this weights file does not exist.", remedy) from error
    _check_size(path, size_bytes, header_bytes + _data_bytes(path, header))
    return [name for name in header if name != "__metadata__"]


def _read_header(path: Path, size_bytes: int) -> tuple[dict[str, object], int]:
    """The JSON header, and the number of bytes before the tensors' data."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size_bytes
        if 8 + length > size_bytes:
            raise TruncatedFile(str(path), f"the file ends inside its header, after {size_bytes} bytes.", _COPY_AGAIN)
        text = file.read(length)
    try:
        header: object = json.loads(text)
    except ValueError as error:
        raise TruncatedFile(str(path), "the file's safetensors header is not valid JSON.", _COPY_AGAIN) from error
    if not isinstance(header, dict):
        raise TruncatedFile(str(path), "the file's safetensors header is not a JSON object.", _COPY_AGAIN)
    return cast("dict[str, object]", header), 8 + length


def _data_bytes(path: Path, header: dict[str, object]) -> int:
    entries = {name: cast("dict[str, list[int]]", entry) for name, entry in header.items() if name != "__metadata__"}
    try:
        return max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise TruncatedFile(str(path), "the file's safetensors header lacks data offsets.", _COPY_AGAIN) from error


def _check_size(path: Path, size_bytes: int, expected_bytes: int) -> None:
    if size_bytes != expected_bytes:
        problem = f"the file has {size_bytes} bytes, but its header describes {expected_bytes}."
        raise TruncatedFile(str(path), problem, _COPY_AGAIN)


def _read_index(path: Path) -> dict[str, str]:
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TruncatedFile(str(path), f"the file is not valid JSON ({error}).", _COPY_AGAIN) from error
    weight_map = cast("dict[str, object]", content).get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise TruncatedFile(str(path), 'the file has no "weight_map" of tensor names to file names.', _COPY_AGAIN)
    files = cast("dict[str, object]", weight_map)
    for name, file in files.items():
        # Only files beside the index: a checkpoint from elsewhere must not make us open any other path.
        if not isinstance(file, str) or PurePath(file).name != file or not file.endswith(".safetensors"):
            remedy = "Put the shards beside the index and name them there without a folder."
            raise ForeignCheckpoint(str(path), f"tensor {name} is said to be in {file!r}.", remedy)
    return cast("dict[str, str]", weight_map)


def _no_weights(directory: Path) -> MissingFile | ForeignCheckpoint:
    if not directory.is_dir():
        return MissingFile(str(directory), "this directory does not exist.", "Give the directory of a Mixtral model.")
    pickled = sorted((*directory.glob("pytorch_model*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")))
    if pickled:
        return ForeignCheckpoint(
            str(pickled[0]),
            "the weights are pickled, and pickles are not read, because unpickling runs whatever code is in them.",
            'If you trust them, convert them: `python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('CONVERTED')\"`, copy the tokenizer's "
            "files there too, and serve CONVERTED.",
        )
    other = sorted(directory.glob("*.safetensors"))
    found = f"; it has {', '.join(path.name for path in other[:3])}, which another naming uses" if other else ""
    return MissingFile(
        str(directory),
        f"there is neither {SINGLE_FILE} nor {INDEX_FILE}{found}.",
        "Give a directory with a complete model in Hugging Face format, safetensors weights included.",
    )
