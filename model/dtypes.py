"""Names of number types, as configurations write them, and what torch calls them."""

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`. Raises ValueError for one that is not served."""
    if name not in TORCH_DTYPES:
        raise ValueError(f"dtype is {name!r}, but must be one of {', '.join(TORCH_DTYPES)}.")
    return TORCH_DTYPES[name]
