"""Reads single tensors, or parts of them, from a safetensors checkpoint; nothing else of the files is read.

A file is opened, and checked to be whole, when the first tensor in it is asked for. So a process that needs one expert
touches only the shards that hold that expert.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import torch
from safetensors import SafetensorError, safe_open

from checkpoint.errors import ForeignCheckpoint, MissingTensor, ShapeMismatch, TruncatedFile
from checkpoint.files import find_weight_map, tensor_names

# Number types of the safetensors format that can be turned into float32 or bfloat16 without a scale from elsewhere.
_READABLE_DTYPES = ("F64", "F32", "F16", "BF16")
Index = tuple[int | slice, ...]


class CheckpointReader:
    """Tensors by name from `directory`/model.safetensors, or from the shards that model.safetensors.index.json lists.

    Raises MissingFile, TruncatedFile or ForeignCheckpoint when the directory holds no readable weights. A context
    manager: leaving it closes the files. Tensors stay valid afterwards, but map the files' memory: copy what is kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = find_weight_map(directory)
        self._open: dict[str, Any] = {}  # file name -> safe_open, whose own type stub says Any for what it returns
        self._names_in: dict[str, frozenset[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file. Reading again opens them again."""
        self._open.clear()

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors in the checkpoint."""
        return frozenset(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def verify(self) -> None:
        """Check that every file exists, is whole and holds the tensors the index promises, without reading weights.

        A few reads per file, so that a server can refuse a half-copied checkpoint before it starts anything.
        Raises MissingFile, TruncatedFile or MissingTensor.
        """
        for name in self._files:
            self._check_holds(name)

    def read(self, name: str, expected_shape: tuple[int, ...]) -> torch.Tensor:
        """The whole tensor `name` in its stored dtype, on the CPU.

        Raises MissingFile, TruncatedFile, MissingTensor, ShapeMismatch or ForeignCheckpoint.
        """
        return self.read_part(name, expected_shape, ())

    def read_part(self, name: str, expected_shape: tuple[int, ...], index: Index) -> torch.Tensor:
        """`tensor[index]` of the tensor `name`, whose whole shape must be `expected_shape`; only that part is read.

        Raises what `read` raises.
        """
        file = self._file_of(name)
        stored = file.get_slice(name)
        self._check_tensor(name, tuple(stored.get_shape()), expected_shape, stored.get_dtype())
        return cast("torch.Tensor", stored[index or ...])

    def _file_of(self, name: str) -> Any:
        self._check_holds(name)
        file = self._files[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.directory / file, framework="pt", device="cpu")
            except SafetensorError as error:
                path, remedy = str(self.directory / file), "The file is damaged: copy it again."
                raise TruncatedFile(path, f"its safetensors header does not hold together: {error}.", remedy) from error
        return self._open[file]

    def _check_holds(self, name: str) -> None:
        remedy = "The checkpoint is incomplete or of another architecture: copy it again, or give a Mixtral model."
        if name not in self._files:
            raise MissingTensor(str(self.directory), f"no file holds the tensor {name}.", remedy)
        file = self._files[name]
        if file not in self._names_in:
            self._names_in[file] = frozenset(tensor_names(self.directory / file))
        if name not in self._names_in[file]:
            path = str(self.directory / file)
            raise MissingTensor(path, f"the index says that tensor {name} is in this file, but it is not.", remedy)

    def _check_tensor(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...], dtype: str) -> None:
        path = str(self.directory / self._files[name])
        if dtype not in _READABLE_DTYPES:
            remedy = f"Only {', '.join(_READABLE_DTYPES)} weights are read; give the unquantized checkpoint."
            raise ForeignCheckpoint(path, f"tensor {name} has dtype {dtype}.", remedy)
        if shape != expected:
            problem = f"tensor {name} has shape {list(shape)}, but config.json implies {list(expected)}."
            raise ShapeMismatch(path, problem, "Give the config.json that belongs to these weights.")
