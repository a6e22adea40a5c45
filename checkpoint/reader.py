"""Reads single tensors, or parts of them, from a safetensors checkpoint; nothing else of the files is read.

A file is opened, and checked to be whole, when the first tensor in it is asked for. So a process that needs one expert
touches only the shards that hold that expert. Only where the index is wrong about a tensor are all headers read.

A name may be stored in another spelling, as transformers allows: `mlp` for `block_sparse_moe` or the reverse, without
the `model.` that a bare MixtralModel leaves out, or with one more, as a module that holds the model as `model` has it.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError, safe_open

from checkpoint.errors import CheckpointError, ForeignCheckpoint, MissingTensor, ShapeMismatch, TruncatedFile
from checkpoint.files import FLOAT_DTYPES, INDEX_FILE, SINGLE_FILE, find_weight_map
from checkpoint.header import StoredTensor, read_header, unreadable

Index = tuple[int | slice, ...]


class CheckpointReader:
    """Tensors by name from `directory`/model.safetensors, or from the shards that model.safetensors.index.json lists.

    Raises MissingFile, UnreadableFile, TruncatedFile or ForeignCheckpoint when the directory holds no readable weights.
    A context manager: leaving it closes the files. Tensors stay valid afterwards, but map the files' memory: copy what
    is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = find_weight_map(directory)  # as an index has it, which may be wrong
        self._open: dict[str, Any] = {}  # file name -> safe_open, whose own type stub says Any for what it returns
        self._headers: dict[str, Mapping[str, StoredTensor]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file. Reading again opens them again."""
        self._open.clear()

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all tensors, as the index has them."""
        return frozenset(self._files)

    @cached_property
    def _file_names(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._files.values())))

    def __contains__(self, name: str) -> bool:
        """Whether a file holds the tensor. May raise what `read` raises of the files."""
        return self._find(name) is not None

    def verify(self) -> None:
        """Check that every file exists and is whole, without reading weights.

        A few reads per file, so that a half-copied checkpoint can be refused before anything is started.
        Raises MissingFile, UnreadableFile, TruncatedFile, or MissingTensor for one that only the index knows of.
        """
        for name, file in self._files.items():
            if name not in self._header(file) and self._find(name) is None:
                raise self._missing(name)

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """The stored shape of the tensor; None: no file holds it. May raise what `read` raises of the files."""
        found = self._find(name)
        return None if found is None else self._header(found[0])[found[1]].shape

    def read(self, name: str, expected_shape: tuple[int, ...]) -> torch.Tensor:
        """The whole tensor `name` in its stored dtype, on the CPU.

        Raises MissingFile, UnreadableFile, TruncatedFile, MissingTensor, ShapeMismatch or ForeignCheckpoint.
        """
        return self.read_part(name, expected_shape, ())

    def read_part(self, name: str, expected_shape: tuple[int, ...], index: Index) -> torch.Tensor:
        """`tensor[index]` of the tensor `name`, whose whole shape must be `expected_shape`; only that part is read.

        Raises what `read` raises.
        """
        found = self._find(name)
        if found is None:
            raise self._missing(name)
        file, stored_name = found
        path = self.directory / file
        _check_tensor(path, stored_name, self._header(file)[stored_name], expected_shape)
        try:
            stored = self._opened(file).get_slice(stored_name)
            return cast("torch.Tensor", stored[index or ...])
        except SafetensorError as error:
            remedy = "The file has changed while it was read, or is damaged: copy it again."
            raise TruncatedFile(str(path), f"tensor {stored_name} cannot be read ({error}).", remedy) from error
        except OSError as error:
            raise unreadable(path, error) from error

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = safe_open(self.directory / file, framework="pt", device="cpu")
        return self._open[file]

    def _header(self, file: str) -> Mapping[str, StoredTensor]:
        if file not in self._headers:
            self._headers[file] = read_header(self.directory / file)
        return self._headers[file]

    def _find(self, name: str) -> tuple[str, str] | None:
        """The file that holds the tensor, and its name there: by the index, or else by the files themselves."""
        spellings = tuple(_spellings(name))
        for stored_name in spellings:
            file = self._files.get(stored_name)
            if file is not None and stored_name in self._header(file):
                return file, stored_name
        for file in self._file_names:
            for stored_name in spellings:
                if stored_name in self._header(file):
                    return file, stored_name
        return None

    def _missing(self, name: str) -> CheckpointError:
        packed = f"{name.removesuffix('.weight')}.qweight"
        if packed in self:
            problem = f"the tensor {name} is stored quantized, as {packed}."
            return ForeignCheckpoint(str(self.directory), problem, "Give the unquantized checkpoint.")
        beside = f"{name.removesuffix('.weight')}.base_layer.weight"
        if beside in self:
            problem = f"the tensor {name} is stored as {beside}, beside an adapter (LoRA) that changes it."
            remedy = "Merge the adapter where the model was saved: merge_and_unload() of peft, then save_pretrained()."
            return ForeignCheckpoint(str(self.directory), problem, remedy)
        if (self.directory / SINGLE_FILE).exists() and (self.directory / INDEX_FILE).exists():
            problem = f"the file does not hold the tensor {name}, and hides the shards that {INDEX_FILE} lists."
            remedy = "If those are the model, move this file away: where it is, it alone is read."
            return MissingTensor(str(self.directory / SINGLE_FILE), problem, remedy)
        remedy = (
            "The checkpoint is incomplete, of another architecture, or has fewer layers or experts than config.json "
            "says: copy it again, or give a Mixtral model."
        )
        said = self._files.get(name)
        problem = f"no file holds the tensor {name}."
        if said is not None:
            problem = f"no file holds the tensor {name}, which the index says is in {said}."
        return MissingTensor(str(self.directory), problem, remedy)


def _spellings(name: str) -> Iterator[str]:
    """`name`, and how else it may be stored."""
    names = [name]
    for one, other in ((".block_sparse_moe.", ".mlp."), (".mlp.", ".block_sparse_moe.")):
        if one in name:
            names.append(name.replace(one, other))
    yield from names
    yield from (each.removeprefix("model.") for each in names if each.startswith("model."))
    yield from (f"model.{each}" for each in names)


def _check_tensor(path: Path, name: str, tensor: StoredTensor, expected: tuple[int, ...]) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        remedy = f"Only {', '.join(FLOAT_DTYPES)} weights are read; give the unquantized checkpoint."
        raise ForeignCheckpoint(str(path), f"tensor {name} has dtype {tensor.dtype}.", remedy)
    if 0 in tensor.shape:
        problem = f"tensor {name} is empty (shape {list(tensor.shape)})."
        remedy = (
            "The weights were saved while they lay elsewhere, as DeepSpeed's ZeRO-3 does unless told otherwise: gather "
            "and save them again (stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py)."
        )
        raise ForeignCheckpoint(str(path), problem, remedy)
    if tensor.shape != expected:
        problem = f"tensor {name} has shape {list(tensor.shape)}, but config.json implies {list(expected)}."
        raise ShapeMismatch(str(path), problem, "Give the config.json that belongs to these weights.")
