"""A folder of safetensors files, or of an index and files, is read or refused by a ModelError."""

import json

from checkpoint.files import INDEX_FILE, SINGLE_FILE
from checkpoint.reader import CheckpointReader
from model.errors import ModelError
from tests.fuzz.folder import Folder
from tests.fuzz.material import Material

WORDS = tuple(
    word.encode()
    for word in (
        '"dtype"', '"F32"', '"BF16"', '"I8"', '"shape"', '"data_offsets"', '"__metadata__"', '"weight_map"', "[0,4]",
        '{"a":', '"model.safetensors"', '"b.safetensors"', "null", "18446744073709551615", "-1", "1e999", "[[[[[[[[",
    )
)  # fmt: skip
MAX_DATA_BYTES = 4096
MAX_READ = 4
_folder = Folder()


def one(data: bytes) -> None:
    material = Material(data)
    kind = material.number(3)
    if kind == 0:
        files = {SINGLE_FILE: material.rest()}
    elif kind == 1:
        files = {SINGLE_FILE: _file(material.rest())}
    else:
        shard = _file(material.take(1 + material.number(256)))
        files = {INDEX_FILE: material.rest(), "b.safetensors": shard}
    directory = _folder.write(files)
    try:
        with CheckpointReader(directory) as reader:
            reader.verify()
            for name in sorted(reader.names)[:MAX_READ]:
                _read(reader, name)
    except ModelError as error:
        assert error.where
        assert error.remedy


def _read(reader: CheckpointReader, name: str) -> None:
    for shape in ((1,), (), (2, 2)):
        try:
            assert reader.read(name, shape).shape == shape
        except ModelError:
            continue


def _file(header: bytes) -> bytes:
    """A file with this header, whose length and data are as it says: guessing both would take a fuzzer for ever."""
    return len(header).to_bytes(8, "little") + header + bytes(_num_data(header))


def _num_data(header: bytes) -> int:
    try:
        entries = json.loads(header).values()
        ends = [entry["data_offsets"][1] for entry in entries if isinstance(entry, dict) and "data_offsets" in entry]
        return max(0, min(max(map(int, ends), default=0), MAX_DATA_BYTES))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return 0
