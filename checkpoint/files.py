"""Which files hold a checkpoint's weights: one, or the shards that an index lists. No torch here."""

from pathlib import Path, PurePath
from typing import cast

from checkpoint.errors import ForeignCheckpoint, MissingFile, TruncatedFile
from checkpoint.foreign import no_weights
from checkpoint.header import check_kind, read_header, unreadable
from model.json_text import MAX_BYTES, JsonError, parse_object, shortened

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def find_weight_map(directory: Path) -> dict[str, str]:
    """Returns which file in `directory` holds each tensor, by its name: of a single file, or as an index has it.

    A single file goes before an index. What an index says may be wrong: what a shard holds, only its own header says.

    Raises:
        MissingFile: There are no weights.
        UnreadableFile: The directory, the single file or the index cannot be read.
        TruncatedFile: The single file or the index is damaged.
        ForeignCheckpoint: There are weights, but none in safetensors format; or the index names other folders.
    """
    try:
        if _is_there(directory / SINGLE_FILE):
            return dict.fromkeys(read_header(directory / SINGLE_FILE), SINGLE_FILE)
        if not _is_there(directory / INDEX_FILE):
            raise no_weights(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    return _read_index(directory / INDEX_FILE)


def _is_there(path: Path) -> bool:
    """A link that leads nowhere is: what is wrong with it is said when it is opened."""
    return path.exists() or path.is_symlink()


def stored_dtype(directory: Path) -> str | None:
    """Returns the number type of the first weight, as config.json would name it; None: there is no such weight.

    Raises:
        CheckpointError: The weights' files cannot be read.
    """
    try:
        files = sorted(set(find_weight_map(directory).values()))
    except (MissingFile, ForeignCheckpoint):  # said when the weights are wanted; a configuration is one without them
        return None
    dtypes = (tensor.dtype for file in files for tensor in read_header(directory / file).values())
    return next((FLOAT_DTYPES[dtype] for dtype in dtypes if dtype in FLOAT_DTYPES), None)


def all_floats(directory: Path) -> bool:
    """Returns whether there are weights, all of them plain numbers: none is quantized.

    Raises:
        CheckpointError: The weights' files cannot be read.
    """
    headers = [read_header(directory / file) for file in set(find_weight_map(directory).values())]
    return all(tensor.dtype in FLOAT_DTYPES for header in headers for tensor in header.values())


def _is_shard_name(name: str) -> bool:
    # What cannot be printed cannot always be a file's name either: a NUL, half of a surrogate pair.
    return PurePath(name).name == name and name.endswith(".safetensors") and name.isprintable()


def _read_index(path: Path) -> dict[str, str]:
    try:
        check_kind(path)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MAX_BYTES:
        raise TruncatedFile(str(path), f"the file has more than {MAX_BYTES} bytes.", "Copy it again.")
    try:
        weight_map = parse_object(data).get("weight_map")
    except JsonError as error:
        raise TruncatedFile(str(path), error.problem, error.remedy) from error
    if not isinstance(weight_map, dict) or not weight_map:
        remedy = "Copy the file again; if you saved it yourself, save the model again."
        raise TruncatedFile(str(path), 'the file has no "weight_map" of tensor names to file names.', remedy)
    files = cast("dict[str, object]", weight_map)
    for name, file in files.items():
        # Only files beside the index: a checkpoint from elsewhere must not make us open any other path.
        if not isinstance(file, str) or not _is_shard_name(file):
            remedy = "Put the shards, safetensors files, beside the index and name them there without a folder."
            raise ForeignCheckpoint(
                str(path), f"tensor {shortened(name)} is said to be in {shortened(repr(file))}.", remedy
            )
    return cast("dict[str, str]", weight_map)
