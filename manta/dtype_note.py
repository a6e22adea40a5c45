"""What to say of a checkpoint that is computed in another number type than its own."""

from cluster.spec import ModelSpec
from model.config import stored_dtype_of


def dtype_note(model: ModelSpec) -> str | None:
    """Returns what to say if `auto` computes a model in another type; None: it is its own, or was asked for.

    Raises:
        ModelError: The checkpoint cannot be read.
    """
    if model.dtype != "auto" or stored_dtype_of(model.directory) != "float16":
        return None
    return (
        "The weights are float16 and computed in float32, exactly, at twice their memory; --dtype bfloat16 "
        "takes half of that, and rounds them."
    )
