"""The header of one safetensors file: what it holds and where, checked against the file before any weight is read.

A safetensors file is: 8 bytes header length (little-endian), a JSON header of name -> {dtype, shape, data_offsets}, and
the tensors' bytes, packed without gaps. So a file that is cut off shows in its length alone.
Source of the format: the README of the safetensors project. No torch here.
"""

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from checkpoint.errors import MissingFile, TruncatedFile, UnreadableFile
from model.json_text import (
    GIT_LFS_PROBLEM,
    GIT_LFS_REMEDY,
    GIT_LFS_START,
    LINK_PROBLEM,
    LINK_REMEDY,
    JsonError,
    parse_object,
    shortened,
)

# Some 160 bytes a tensor: room for 200,000 of them. The format itself ends at 100 MB, of which JSON makes a gigabyte.
MAX_HEADER_BYTES = 32 << 20
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_PREFIX_BYTES = 8
_MAX_DIMENSIONS = 16
_MAX_COUNT = 1 << 63
_METADATA = "__metadata__"
_COPY_AGAIN = "Download or copy the file again; if you saved it yourself, save the model again."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One entry: the type's name in the format (`F32`, `BF16`, ...), the shape, and the bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of one safetensors file by name, in the header's order.

    Raises:
        MissingFile: It does not exist.
        UnreadableFile: It cannot be opened or read, or is a folder.
        TruncatedFile: Its length is not what its header says, or the header does not hold together.
    """
    try:
        check_kind(path)
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            text = _read_text(path, file, size_bytes)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        entries = parse_object(text)
    except JsonError as error:
        problem = f"the file's safetensors header cannot be used: {error.problem}"
        raise TruncatedFile(str(path), problem, _COPY_AGAIN) from error
    tensors = {name: _entry(path, name, said) for name, said in entries.items() if name != _METADATA}
    _check_layout(path, tensors, _PREFIX_BYTES + len(text), size_bytes)
    return tensors


def check_kind(path: Path) -> None:
    """Does nothing if it is a file; to open a pipe would wait for whoever writes to it.

    Raises:
        OSError: It is none, or not there.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    if not stat.S_ISREG(mode):
        raise OSError("it is a pipe, a socket or a device")


def unreadable(path: Path, error: OSError) -> MissingFile | UnreadableFile:
    """The error to raise where the system does not let a file be read."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return MissingFile(str(path), LINK_PROBLEM, LINK_REMEDY)
        remedy = "Copy it into the directory; model.safetensors.index.json lists every file of the checkpoint."
        return MissingFile(str(path), "this weights file does not exist.", remedy)
    if isinstance(error, IsADirectoryError):
        return UnreadableFile(str(path), "this is a folder, not a weights file.", "Put the file itself in its place.")
    if isinstance(error, PermissionError):
        remedy = "Let the user that Manta runs as read it and every folder above it."
        return UnreadableFile(str(path), f"it may not be read ({error.strerror}).", remedy)
    remedy = "Check the disk or mount that it lies on, or copy the model to another."
    return UnreadableFile(str(path), f"it cannot be read ({error.strerror or error}).", remedy)


def _read_text(path: Path, file: BinaryIO, size_bytes: int) -> bytes:
    prefix = file.read(_PREFIX_BYTES)
    if prefix == GIT_LFS_START[:_PREFIX_BYTES]:
        raise TruncatedFile(str(path), GIT_LFS_PROBLEM, GIT_LFS_REMEDY)
    length = int(struct.unpack("<Q", prefix)[0]) if len(prefix) == _PREFIX_BYTES else size_bytes
    if _PREFIX_BYTES + length > size_bytes:
        raise TruncatedFile(str(path), f"the file ends inside its header, after {size_bytes} bytes.", _COPY_AGAIN)
    if length > MAX_HEADER_BYTES:
        problem = f"the file's safetensors header has {length} bytes; at most {MAX_HEADER_BYTES} are read."
        raise TruncatedFile(str(path), problem, "This is no model's: copy the file again from where it came from.")
    return file.read(length)


def _entry(path: Path, name: str, said: object) -> StoredTensor:
    """Raises TruncatedFile unless `said` has a type, a shape and the offsets that follow from both."""
    entry = cast("Mapping[str, object]", said) if isinstance(said, dict) else dict[str, object]()
    dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _incoherent(path, name, "lacks its dtype, shape or data_offsets")
    if dtype not in BITS:
        raise _incoherent(path, name, f"has a dtype that the format does not know: {dtype!r}")
    start, stop = offsets
    if 8 * (stop - start) != BITS[dtype] * math.prod(shape):
        raise _incoherent(path, name, f"has {stop - start} bytes, with dtype {dtype} and shape {list(shape)}")
    return StoredTensor(dtype, shape, start, stop)


def _counts(value: object) -> tuple[int, ...] | None:
    """The list `value` as a tuple, if it is short and all it holds are integers from 0 on, of 63 bits."""
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None or len(items) > _MAX_DIMENSIONS:  # a product of a million numbers takes for ever
        return None
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_COUNT for item in items):
        return None
    return tuple(cast("list[int]", items))


def _check_layout(path: Path, tensors: Mapping[str, StoredTensor], header_bytes: int, size_bytes: int) -> None:
    """Raises TruncatedFile unless the tensors fill the file, without gaps and without sharing a byte."""
    stop = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != stop:
            fault = "begins inside another" if tensor.start < stop else "leaves bytes unused before it"
            raise _incoherent(path, name, fault)
        stop = tensor.stop
    if header_bytes + stop != size_bytes:
        problem = f"the file has {size_bytes} bytes, but its header describes {header_bytes + stop}."
        raise TruncatedFile(str(path), problem, _COPY_AGAIN)


def _incoherent(path: Path, name: str, fault: str) -> TruncatedFile:
    words = f"tensor {shortened(name)!r} {shortened(fault)}"
    return TruncatedFile(str(path), f"the file's safetensors header does not hold together: {words}.", _COPY_AGAIN)
