"""The files of a checkpoint's tensors, as `torch.distributed.checkpoint` writes and reads them through this.

Its own storage pickles what it knows of the tensors, and each tensor: whoever reads that from a folder of someone else
runs their code. Here tensors are safetensors files, and what is known of them is a manifest.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from checkpoint.errors import CheckpointError as FileError
from checkpoint.errors import UnreadableFile
from checkpoint.header import read_header
from checkpoint.writer import save_tensors
from training.manifest import MANIFEST_FILE, Part, StoredTensor, Tensors, manifest_text

MAX_FILE_BYTES = 2_000_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class DamagedFile(ValueError):
    """A file of tensors is not what the manifest says."""


class TensorWriter(StorageWriter, BlockingAsyncStager):
    """Writes what each rank has into files of its own, and on the coordinator the manifest of all.

    Args:
        directory: New, on storage that every rank reaches.
    """

    def __init__(self, directory: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        super().__init__()  # the stager's: it copies all tensors before anything is written
        self._directory = directory
        self._max_file_bytes = max_file_bytes

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        assert checkpoint_id is None, "a writer writes one checkpoint"

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._directory.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        names = [f"rank-{rank:05d}-of-{len(plans):05d}" for rank in range(len(plans))]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written: list[WriteResult] = []
        for number, items in enumerate(_cut(plan.items, self._max_file_bytes)):
            name = f"{plan.storage_data}-{number:05d}.safetensors"
            tensors = {item.index.fqn: _own(planner.resolve_data(item)) for item in items}
            assert len(tensors) == len(items), "a rank has one part of a tensor"
            save_tensors(self._directory / name, tensors)
            _sync(self._directory / name)
            written += [WriteResult(item.index, tensors[item.index.fqn].nbytes, name) for item in items]
        done = Future[list[WriteResult]]()
        done.set_result(written)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {result.index: str(result.storage_data) for some in results for result in some}
        tensors = {name: _described(name, said, files) for name, said in metadata.state_dict_metadata.items()}
        path = self._directory / MANIFEST_FILE
        path.write_text(manifest_text(tensors))
        _sync(path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False  # it is given its folder


class TensorReader(StorageReader):
    """Reads parts of tensors, whatever parts they were written in."""

    def __init__(self, directory: Path, tensors: Tensors) -> None:
        self._directory = directory
        self._tensors = tensors

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        assert checkpoint_id is None, "a reader reads one checkpoint"

    def read_metadata(self) -> Metadata:  # pyright: ignore[reportIncompatibleMethodOverride] - as torch's own reader
        return Metadata({name: _metadata(tensor) for name, tensor in self._tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        # Not in `read_metadata`, whose errors torch takes for a lack of metadata. One rank's look at all files will do.
        if is_coordinator:
            check_files(self._directory, self._tensors)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            name, offset = item.storage_index.fqn, item.storage_index.offset
            start = offset[0] if offset else 0
            part = next(part for part in self._tensors[name].parts if part.start == start)
            by_file.setdefault(part.file, []).append(item)
        for file, items in by_file.items():
            with _opened(self._directory / file) as opened:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_read(opened, item))
                    planner.commit_tensor(item, target)
        done = Future[None]()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False  # it is given its folder


def read_tensor(directory: Path, name: str, tensor: StoredTensor) -> Tensor:
    """Returns a whole tensor in memory of its own. `check_files` comes first: it bounds what is made.

    Raises:
        DamagedFile: A file is no longer what it was.
        OSError: A file cannot be read.
    """
    whole = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
    for part in tensor.parts:
        with _opened(directory / part.file) as opened:
            (whole[part.start : part.stop] if tensor.shape else whole).copy_(opened.get_tensor(name))
    return whole


def check_files(directory: Path, tensors: Tensors) -> None:
    """Does nothing if all files are there, are whole and hold what the manifest says; reads only their headers.

    Raises:
        DamagedFile: Names the file and the tensor.
        OSError: A file cannot be read.
    """
    parts: dict[str, list[tuple[str, StoredTensor, Part]]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise DamagedFile(f"tensor {name} is of type {tensor.dtype}; Manta writes {', '.join(DTYPES)}")
        for part in tensor.parts:
            parts.setdefault(part.file, []).append((name, tensor, part))
    for file, its_parts in parts.items():
        _check_file(directory / file, its_parts)


def _check_file(path: Path, parts: Iterable[tuple[str, StoredTensor, Part]]) -> None:
    try:
        names = frozenset(read_header(path))
    except UnreadableFile as error:  # the storage may be back soon
        raise OSError(str(error)) from error
    except FileError as error:
        raise DamagedFile(str(error)) from error
    with _opened(path) as opened:
        for name, tensor, part in parts:
            if name not in names:
                raise DamagedFile(f"{path.name} has no tensor {name}, and {MANIFEST_FILE} says that it has")
            stored = opened.get_slice(name)
            found, wanted = list[int](stored.get_shape()), list(tensor.shape_of(part))
            if found != wanted or stored.get_dtype() != tensor.dtype:
                what = f"{MANIFEST_FILE} says {tensor.dtype} {wanted}"
                raise DamagedFile(f"{path.name}: tensor {name} is {stored.get_dtype()} {found}, and {what}")


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedFile(f"{path.name}: {error}") from error


def _read(opened: Any, item: ReadItem) -> Tensor:
    """The rows that a rank needs of one file."""
    slices = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
    return opened.get_slice(item.storage_index.fqn)[slices] if slices else opened.get_tensor(item.storage_index.fqn)


def _metadata(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks: list[ChunkStorageMetadata] = []
    for part in tensor.parts:
        shape = tensor.shape_of(part)
        offsets = (part.start, *(0 for _ in shape[1:])) if shape else ()
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape)))
    return TensorStorageMetadata(TensorProperties(DTYPES[tensor.dtype]), torch.Size(tensor.shape), chunks)


def _described(name: str, said: object, files: dict[MetadataIndex, str]) -> StoredTensor:
    assert isinstance(said, TensorStorageMetadata), f"{name} is no tensor"
    parts: list[Part] = []
    for chunk in said.chunks:
        assert tuple(chunk.sizes[1:]) == tuple(said.size[1:]), f"{name} is cut across its rows"
        start, num_rows = (chunk.offsets[0], chunk.sizes[0]) if said.size else (0, 1)
        parts.append(Part(files[MetadataIndex(name, chunk.offsets)], start, start + num_rows))
    parts.sort(key=lambda part: part.start)
    return StoredTensor(_NAMES[said.properties.dtype], tuple(said.size), tuple(parts))


def _cut(items: Iterable[WriteItem], max_file_bytes: int) -> Iterator[list[WriteItem]]:
    """Yields what belongs into one file each."""
    some: list[WriteItem] = []
    size = 0
    for item in items:
        assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
        num_bytes = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if some and size + num_bytes > max_file_bytes:
            yield some
            some, size = [], 0
        some.append(item)
        size += num_bytes
    if some:
        yield some


def _own(value: Any) -> Tensor:
    """A tensor on the CPU in memory of its own, as safetensors wants it."""
    tensor: Tensor = value.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
