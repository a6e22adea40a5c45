"""What can be wrong with a checkpoint's weights.

CheckpointError             a ModelError: the weights cannot be used as they are
├── MissingFile             the directory, the weights or one shard of them is not there
├── UnreadableFile          the system does not let a file or the directory be read
├── TruncatedFile           a safetensors file is shorter (or longer) than its header says, or has no readable header
├── MissingTensor           no file holds a tensor that the model needs
├── ShapeMismatch           a tensor's shape is not what config.json implies
└── ForeignCheckpoint       weights of another format, another architecture or a number type that is not read
"""

from model.errors import ModelError


class CheckpointError(ModelError):
    """Weights that cannot be used: names the file, the tensor where there is one, and the remedy."""


class MissingFile(CheckpointError):
    """The checkpoint's directory, or a file that it needs, does not exist."""


class UnreadableFile(CheckpointError):
    """A file that is there and cannot be read: a folder in its place, no permission, a failing disk."""


class TruncatedFile(CheckpointError):
    """A weights file that was cut off or damaged, most often by an interrupted download or copy."""


class MissingTensor(CheckpointError):
    """A tensor that the model needs is in none of the checkpoint's files."""


class ShapeMismatch(CheckpointError):
    """A tensor whose shape disagrees with config.json."""


class ForeignCheckpoint(CheckpointError):
    """Weights in a format, of an architecture or of a number type that Manta does not read."""
