"""How ranks are laid out, and what is said where they cannot be."""

import pytest
import torch

from tests.training.ranks import Ranks
from training.mesh import MeshError, MeshShape, elastic_shape, make_mesh, mesh_shape


def test_a_world_is_a_grid() -> None:
    assert mesh_shape(6, 2, 8) == MeshShape(2, 3)
    assert mesh_shape(6, 2, 8).world == 6


@pytest.mark.parametrize(
    ("world", "expert_parallel", "problem", "fitting"),
    [
        (6, 3, "expert_parallel 3 does not divide the model's 8 experts", "1, 2"),
        (6, 4, "expert_parallel 4 does not divide the 6 workers", "1, 2"),
        (1, 2, "expert_parallel 2 does not divide the 1 workers", "1"),
    ],
)
def test_a_grid_that_cannot_be_says_what_could(world: int, expert_parallel: int, problem: str, fitting: str) -> None:
    with pytest.raises(MeshError) as caught:
        mesh_shape(world, expert_parallel, 8)
    assert str(caught.value) == f"{problem}; with {world} workers and 8 experts it may be {fitting}"


def test_whatever_the_world_an_elastic_run_finds_a_grid() -> None:
    for world in range(1, 9):
        shape = elastic_shape(world, 4, 8)
        assert shape == mesh_shape(world, shape.expert_parallel, 8)
        assert shape.expert_parallel <= 4


def wrong_world(rank: int) -> str:
    try:
        make_mesh(MeshShape(2, 2), torch.device("cpu"))
    except MeshError as error:
        return str(error)
    return "it was made"


def test_a_mesh_for_another_world_is_refused_by_every_rank(ranks: Ranks) -> None:
    assert ranks.run(2, wrong_world) == ["there are 2 ranks, and the mesh is made for 4"] * 2
