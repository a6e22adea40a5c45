"""Loading a shard from a checkpoint.

N rows, D model dim.
"""

from pathlib import Path

import pytest
import torch

from experts.shard import ExpertShard, load_shard
from model.config import MixtralConfig, read_config
from tests.random_checkpoint import make_checkpoint

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MixtralConfig]:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(directory, num_experts=4, seed=3, with_tokenizer=False)
    return directory, read_config(directory)


def output(shard: ExpertShard, layer: int, expert: int, rows_ND: torch.Tensor) -> torch.Tensor:
    ffn = shard.ffn(layer, expert)
    assert ffn is not None
    return ffn(rows_ND)


def test_a_shard_holds_every_layer_of_its_experts_and_no_other(checkpoint: tuple[Path, MixtralConfig]) -> None:
    directory, config = checkpoint
    progress: list[float] = []
    shard = load_shard(directory, config, (1, 2), 0, 1, FP32, CPU, progress.append)
    assert shard.width == config.hidden_size
    held = [(layer, e) for layer in range(config.num_layers + 1) for e in range(5) if shard.ffn(layer, e) is not None]
    assert held == [(layer, expert) for layer in range(config.num_layers) for expert in (1, 2)]
    assert progress == [0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_slices_of_a_loaded_shard_add_up(
    checkpoint: tuple[Path, MixtralConfig], dtype: torch.dtype, seed: int
) -> None:
    directory, config = checkpoint
    rows_ND = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    whole = load_shard(directory, config, (0, 1, 2, 3), 0, 1, dtype, CPU)
    slices = [load_shard(directory, config, (2,), index, 3, dtype, CPU) for index in range(3)]
    for layer in range(config.num_layers):
        whole_ND = output(whole, layer, 2, rows_ND).float()
        total_ND = torch.stack([output(part, layer, 2, rows_ND).float() for part in slices]).sum(0)
        scale = max(1.0, float(whole_ND.abs().max()))
        assert float((total_ND - whole_ND).abs().max()) < (1e-5 if dtype == FP32 else 0.03) * scale


def test_more_slices_than_columns_are_refused(checkpoint: tuple[Path, MixtralConfig]) -> None:
    directory, config = checkpoint
    with pytest.raises(ValueError, match=r"96 FFN columns cannot be cut in 97 slices; set experts\.slices lower"):
        load_shard(directory, config, (0,), 0, 97, FP32, CPU)
