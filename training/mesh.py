"""Which rank holds which experts, and whom it talks to.

The world is a grid of EP × EDP ranks. The EP ranks of an `ep` group hold one set of experts between them and exchange
rows; the EDP ranks of an `ep_dp` group hold the same experts and sum their gradients. Everything else is on every rank.

    EP = 2, EDP = 3:   rank           0  1  2  3  4  5
                       ep groups     [0  1][2  3][4  5]      ranks beside each other: most often on one host
                       ep_dp groups  [0, 2, 4] [1, 3, 5]
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

EP, EP_DP = "ep", "ep_dp"


class MeshError(ValueError):
    """The ranks cannot be laid out as asked for; says what would do."""


@dataclass(frozen=True)
class MeshShape:
    """How many ranks hold one set of experts (EP), and how many sets there are (EDP)."""

    expert_parallel: int
    expert_data_parallel: int

    @property
    def world(self) -> int:
        return self.expert_parallel * self.expert_data_parallel


def mesh_shape(world: int, expert_parallel: int, num_experts: int) -> MeshShape:
    """Returns the grid of a world.

    Raises:
        MeshError: The experts or the ranks cannot be divided so.
    """
    fitting = ", ".join(str(size) for size in range(1, world + 1) if world % size == 0 and num_experts % size == 0)
    if num_experts % expert_parallel:
        problem = f"expert_parallel {expert_parallel} does not divide the model's {num_experts} experts"
    elif world % expert_parallel:
        problem = f"expert_parallel {expert_parallel} does not divide the {world} workers"
    else:
        return MeshShape(expert_parallel, world // expert_parallel)
    raise MeshError(f"{problem}; with {world} workers and {num_experts} experts it may be {fitting}")


def elastic_shape(world: int, expert_parallel: int, num_experts: int) -> MeshShape:
    """Returns the grid of whatever number of workers there is: EP as asked for, or the largest below that fits.

    >>> elastic_shape(4, 2, 8), elastic_shape(3, 2, 8)
    (MeshShape(expert_parallel=2, expert_data_parallel=2), MeshShape(expert_parallel=1, expert_data_parallel=3))
    """
    sizes = range(min(expert_parallel, world), 0, -1)
    return mesh_shape(world, next(size for size in sizes if world % size == 0 and num_experts % size == 0), num_experts)


@dataclass(frozen=True)
class Mesh:
    """The grid as one rank sees it.

    Args:
        device: Where this rank computes.
        grid: The device mesh of dimensions (`ep_dp`, `ep`); None: this process is the whole world, and there is nobody
            to talk to.
    """

    shape: MeshShape
    device: torch.device
    grid: DeviceMesh | None = None

    @property
    def world(self) -> int:
        return self.shape.world

    @property
    def rank(self) -> int:
        return 0 if self.grid is None else dist.get_rank()

    @property
    def ep_rank(self) -> int:
        """The place in the `ep` group: which part of the experts this rank holds."""
        return self.rank % self.shape.expert_parallel

    @property
    def ep(self) -> dist.ProcessGroup | None:
        """Those who hold one set of experts between them; None: this rank alone does."""
        return self._group(EP) if self.shape.expert_parallel > 1 else None

    @property
    def ep_dp(self) -> dist.ProcessGroup | None:
        """Those who hold the same experts; None: nobody else does."""
        return self._group(EP_DP) if self.shape.expert_data_parallel > 1 else None

    @property
    def everybody(self) -> dist.ProcessGroup | None:
        """The world; None: this rank is alone."""
        return dist.group.WORLD if self.grid is not None and self.world > 1 else None

    def local_experts(self, num_experts: int) -> range:
        """Returns the experts that this rank holds."""
        num_local = num_experts // self.shape.expert_parallel
        return range(self.ep_rank * num_local, (self.ep_rank + 1) * num_local)

    def _group(self, name: str) -> dist.ProcessGroup | None:
        return None if self.grid is None else self.grid.get_group(name)


def lone_mesh(device: torch.device | None = None) -> Mesh:
    """Returns the mesh of a single process."""
    return Mesh(MeshShape(1, 1), device or torch.device("cpu"))


def make_mesh(shape: MeshShape, device: torch.device, timeout_s: float = 300) -> Mesh:
    """Makes the groups; every rank of an initialised `torch.distributed` calls it.

    Args:
        timeout_s: How long a rank waits for the others of a group (`limits.collective_timeout_s`). `init_device_mesh`
            would give its groups torch's half hour, whatever the world has.

    Raises:
        MeshError: The world is of another size.
    """
    if dist.get_world_size() != shape.world:
        raise MeshError(f"there are {dist.get_world_size()} ranks, and the mesh is made for {shape.world}")
    ranks = torch.arange(shape.world).view(shape.expert_data_parallel, shape.expert_parallel)
    groups = [_own_group(of_dimension, timeout_s) for of_dimension in (ranks.t().tolist(), ranks.tolist())]
    return Mesh(shape, device, DeviceMesh.from_group(groups, device.type, ranks, mesh_dim_names=(EP_DP, EP)))


def _own_group(groups: list[list[int]], timeout_s: float) -> dist.ProcessGroup:
    """Makes all groups of a dimension, in the same order on every rank; returns this rank's."""
    made: list[Any] = [dist.new_group(ranks, timeout=timedelta(seconds=timeout_s)) for ranks in groups]
    return next(group for ranks, group in zip(groups, made, strict=True) if dist.get_rank() in ranks)
