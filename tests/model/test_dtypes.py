"""Number types by name."""

import pytest
import torch

from model.dtypes import torch_dtype


def test_names() -> None:
    assert torch_dtype("float32") is torch.float32
    assert torch_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'int4', but must be one of float32, bfloat16"):
        torch_dtype("int4")
