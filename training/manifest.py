"""What a checkpoint's tensors are, and in which files their rows lie: plain data, never unpickled.

    tensors.json    {"tensors": {"parameters.embedding": {"dtype": "F32", "shape": [512, 64], "parts":
                     [{"file": "rank-00000-of-00002-00000.safetensors", "start": 0, "stop": 512}]}}}

A part is a run of rows (of the first dimension) in one file, under the tensor's name. What the manifest says is checked
against itself when it is read, and against the files before memory is made for it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from training.plain_files import NotPlain, parse_plain, read_bounded

MANIFEST_FILE = "tensors.json"
MAX_MANIFEST_BYTES = 1 << 28  # 100 bytes for each part: two million of them
MAX_DIMENSIONS = 8
_FILE = re.compile(r"rank-\d{5}-of-\d{5}-\d{5}\.safetensors")

Size = Annotated[int, Field(ge=0, lt=1 << 48)]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a tensor; of one without dimensions, its only value is row 0."""

    file: str
    start: Size
    stop: Size


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Args:
        dtype: By its name in safetensors: `F32`.
        shape: Of the whole tensor.
        parts: In the order of their rows; together they are all of it, and no row is in two.
    """

    dtype: Annotated[str, Field(pattern=r"^[A-Z0-9]{1,8}$")]
    shape: Annotated[tuple[Size, ...], Field(max_length=MAX_DIMENSIONS)]
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        """Of the first dimension; 1 without dimensions."""
        return self.shape[0] if self.shape else 1

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """The shape of a part, as its file must have it."""
        return (part.stop - part.start, *self.shape[1:]) if self.shape else ()


Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a checkpoint by name."""

    tensors: dict[str, StoredTensor]


_MANIFEST = TypeAdapter(Manifest)


def manifest_text(tensors: Tensors) -> str:
    """Returns what is written to MANIFEST_FILE."""
    return json.dumps({"tensors": {name: asdict(tensor) for name, tensor in tensors.items()}})


def read_manifest(directory: Path) -> Tensors:
    """Returns a checkpoint's tensors.

    Raises:
        OSError: The manifest cannot be read.
        NotPlain: It does not hold together; names the tensor.
    """
    text = read_bounded(directory / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    tensors = parse_plain(text, _MANIFEST, MANIFEST_FILE).tensors
    for name, tensor in tensors.items():
        _check(name, tensor)
    return tensors


def _check(name: str, tensor: StoredTensor) -> None:
    place = 0
    for part in tensor.parts:
        if not _FILE.fullmatch(part.file):  # no other path is opened
            raise NotPlain(
                f"{MANIFEST_FILE}: tensor {name} is said to be in {part.file!r}, which is no file of Manta's"
            )
        if part.start != place or part.stop <= part.start:
            raise NotPlain(f"{MANIFEST_FILE}: tensor {name} has rows {part.start} to {part.stop} where {place} follows")
        place = part.stop
    if place != tensor.num_rows:
        raise NotPlain(f"{MANIFEST_FILE}: tensor {name} has {tensor.num_rows} rows, and its parts have {place}")
