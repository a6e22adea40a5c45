"""EP × EDP ranks, each with other data, against one naive process: outputs, losses, gradients, and steps."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.config import MixtralConfig
from model.routing import BY_TOKEN, Routing
from router.capacity import capacity_of
from tests.training import naive
from tests.training.naive import GivenWeights, Parameters, parameters_of, random_batch, small_config
from tests.training.ranks import Ranks
from training.gradients import global_norm, reduce_gradients
from training.losses import LossSettings, losses_of
from training.mesh import Mesh, MeshShape, lone_mesh, make_mesh
from training.model import Batch, TrainModel
from training.optimizer import learning_rate, make_optimizer, set_learning_rate
from training.spec_schema import OptimizerSpec
from training.step import StepSettings, train_step

SHAPES = [MeshShape(1, 1), MeshShape(1, 4), MeshShape(2, 2), MeshShape(4, 1)]
LENGTH = 10
NUM_STEPS = 10
TINY = 1e-12
SGD = OptimizerSpec(name="sgd", peak_lr=0.3, final_lr=0.1, warmup_steps=2, momentum=0.9, weight_decay=0.01)
ADAMW = OptimizerSpec(name="adamw", peak_lr=0.01, final_lr=0.001, warmup_steps=2)


@dataclass(frozen=True)
class Case:
    """One way to compute a step; plain data, for other processes."""

    config: MixtralConfig
    seed: int
    factor: float | None
    losses: LossSettings
    one_sided: bool = False  # no row chooses the last expert
    gates: tuple[tuple[float, ...], ...] | None = None  # every layer's; None: random ones

    @property
    def parameters(self) -> Parameters:
        parameters = parameters_of(self.config, self.seed)
        if self.one_sided:
            for layer in range(self.config.num_layers):
                parameters[f"layers.{layer}.moe.gate"][-1] = 0  # the others' logits come in pairs of opposite signs
                parameters[f"layers.{layer}.moe.gate"][1] = -parameters[f"layers.{layer}.moe.gate"][0]
        if self.gates is not None:
            for layer in range(self.config.num_layers):
                parameters[f"layers.{layer}.moe.gate"] = torch.tensor(self.gates, dtype=torch.float64)
        return parameters

    def batch(self, rank: int, step: int = 0) -> Batch:
        """Ranks have other data, and not equally much of it."""
        return random_batch(self.config, self.seed * 1000 + 10 * step + rank, 1 + rank % 2, LENGTH)

    def most_rows(self, world: int) -> int:
        return LENGTH * (1 if world == 1 else 2)

    def capacity(self, world: int) -> int | None:
        if self.factor is None:
            return None
        return capacity_of(self.most_rows(world), self.config.top_k, self.config.num_experts, self.factor)


def cases(seed: int) -> list[Case]:
    config = small_config()
    both = LossSettings(balance=0.3, router_z=0.1)
    dropless = Case(config, seed, None, both)
    return [
        dropless,
        replace(dropless, factor=0.8),
        replace(dropless, losses=replace(both, scope="rank"), config=replace(config, window=4, top_k=1)),
        replace(dropless, config=replace(config, routing=Routing("sentence", 3))),
        replace(dropless, factor=1.0, config=replace(config, routing=Routing("task", 0, ("one", "two")))),
        replace(dropless, one_sided=True, config=replace(config, top_k=1, tie_embeddings=True)),
    ]


def mesh_of(shape: MeshShape) -> Mesh:
    return make_mesh(shape, torch.device("cpu")) if shape.world > 1 else lone_mesh()


def distance(one: Tensor, other: Tensor) -> float:
    return float(((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).detach())


def one_step(rank: int, shape: MeshShape, asked: list[Case]) -> list[dict[str, Any]]:
    mesh = mesh_of(shape)
    found: list[dict[str, Any]] = []
    for case in asked:
        model = TrainModel(case.config, GivenWeights(case.parameters), mesh, torch.float64)
        batch = case.batch(rank)
        capacity = case.capacity(shape.world)
        losses = losses_of(model(batch, capacity), batch.ids_BL.numel(), case.config.top_k, case.losses, mesh)
        losses.share.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        dense = [gradients[name] for name, _ in model.dense_parameters()]
        experts = [gradients[name] for name, _ in model.expert_parameters()]
        reduce_gradients(dense, experts, mesh)  # pyright: ignore[reportArgumentType]
        found.append(
            {
                "rows": model.rows(batch, capacity)[0].detach(),
                "gradients": gradients,
                "norm": global_norm(dense, experts, mesh),  # pyright: ignore[reportArgumentType]
                "losses": replace(losses, share=losses.share.detach()),
            }
        )
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}")
def test_outputs_losses_and_gradients_are_those_of_one_process(shape: MeshShape, ranks: Ranks, seed: int) -> None:
    asked = cases(seed)
    found = ranks.run(shape.world, one_step, shape, asked)
    for number, case in enumerate(asked):
        batches = [case.batch(rank) for rank in range(shape.world)]
        leaves = {name: value.clone().requires_grad_() for name, value in case.parameters.items()}
        expected = naive.losses_of(
            leaves,
            case.config,
            batches,
            balance=case.losses.balance,
            router_z=case.losses.router_z,
            scope=case.losses.scope,
            capacity=case.capacity(shape.world),
        )
        expected.total.backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        norm = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
        for rank in range(shape.world):
            mine = found[rank][number]
            held = rank % shape.expert_parallel * (case.config.num_experts // shape.expert_parallel)
            assert distance(mine["rows"], expected.rows[rank]) < TINY
            assert mine["losses"].nats == pytest.approx(float(expected.nats.detach()), rel=TINY)
            assert mine["losses"].balance == pytest.approx(float(expected.balance.detach()), rel=TINY)
            assert mine["losses"].router_z == pytest.approx(float(expected.router_z.detach()), rel=TINY)
            assert mine["losses"].dropped_per_layer == expected.dropped
            assert mine["losses"].rows_per_expert == expected.counts
            assert mine["norm"] == pytest.approx(norm, rel=TINY)
            for name, gradient in mine["gradients"].items():
                whole = gradients[name]
                if name.endswith(("gate_up", "down")):
                    whole = whole[held : held + case.config.num_experts // shape.expert_parallel]
                assert distance(gradient, whole) < TINY, (name, rank, case)


@dataclass(frozen=True)
class Steps:
    """What one rank has after ten steps, and the copies that it asked of each expert, for each step and layer."""

    parameters: dict[str, Tensor]
    counts: list[list[list[int]]]


def ten_steps(rank: int, shape: MeshShape, case: Case, optimizers: list[OptimizerSpec]) -> list[Steps]:
    mesh = mesh_of(shape)
    settings = StepSettings(case.losses, case.factor, clip_norm=0.5)
    found: list[Steps] = []
    for chosen in optimizers:
        model = TrainModel(case.config, GivenWeights(case.parameters), mesh, torch.float64)
        counts: list[list[list[int]]] = []

        def count(_: object, __: object, outcome: Any, counts: list[list[list[int]]] = counts) -> None:
            counts.append([one.counts_E.tolist() for one in outcome.routings])

        model.register_forward_hook(count)
        optimizer = make_optimizer(model.parameters(), chosen)
        for step in range(NUM_STEPS):
            set_learning_rate(optimizer, learning_rate(step, NUM_STEPS, chosen))
            batch = case.batch(rank, step)
            train_step(model, optimizer, batch, step, case.most_rows(shape.world), settings, mesh)
        found.append(Steps({name: parameter.detach() for name, parameter in model.named_parameters()}, counts))
    return found


def naive_steps(case: Case, world: int, chosen: OptimizerSpec) -> Parameters:
    leaves = {name: value.clone().requires_grad_() for name, value in case.parameters.items()}
    optimizer = make_optimizer(leaves.values(), chosen)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        batches = [case.batch(rank, step) for rank in range(world)]
        expected = naive.losses_of(
            leaves,
            case.config,
            batches,
            balance=case.losses.balance,
            router_z=case.losses.router_z,
            capacity=case.capacity(world),
        )
        expected.total.backward()
        gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for gradient in gradients:
            gradient.mul_(min(1.0, 0.5 / norm))
        set_learning_rate(optimizer, learning_rate(step, NUM_STEPS, chosen))
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


@pytest.mark.parametrize("factor", [None, 0.8], ids=["dropless", "capacity"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}")
def test_ten_steps_stay_equal(shape: MeshShape, factor: float | None, ranks: Ranks, seed: int) -> None:
    case = replace(cases(seed)[0], factor=factor)
    assert_the_same_steps(shape, case, ranks.run(shape.world, ten_steps, shape, case, [SGD, ADAMW]))


@pytest.mark.parametrize("factor", [None, 1.0], ids=["dropless", "capacity"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}")
def test_a_rank_that_asks_nothing_of_some_experts_stays_equal(
    shape: MeshShape, factor: float | None, ranks: Ranks, seed: int
) -> None:
    """Tasks decide: ranks with one sequence have only the first one's, the others both."""
    case = Case(
        small_config(routing=Routing("task", 0, ("one", "two"))),
        seed,
        factor,
        LossSettings(balance=0.3),
        gates=((20.5, 20, -20, -20.5), (-20, -20.5, 20.5, 20)),
    )
    found = ranks.run(shape.world, ten_steps, shape, case, [SGD, ADAMW])
    for rank in range(shape.world):
        for layer in (layer for steps in found[rank] for step in steps.counts for layer in step):
            assert layer == ([LENGTH, LENGTH, 0, 0] if rank % 2 == 0 else [LENGTH] * 4)
    assert_the_same_steps(shape, case, found)


def assert_the_same_steps(shape: MeshShape, case: Case, found: list[list[Steps]]) -> None:
    """Of every rank as of one naive process, and of ranks that hold the same to the last bit."""
    for number, (chosen, tolerance) in enumerate(((SGD, 1e-12), (ADAMW, 1e-8))):
        expected = naive_steps(case, shape.world, chosen)
        num_local = case.config.num_experts // shape.expert_parallel
        for rank in range(shape.world):
            held = rank % shape.expert_parallel * num_local
            for name, value in found[rank][number].parameters.items():
                whole = expected[name]
                if name.endswith(("gate_up", "down")):
                    whole = whole[held : held + num_local]
                assert float((value - whole).abs().max()) < tolerance, (name, rank, chosen.name)
        for name in expected:  # replicas have not drifted apart by a single bit
            step_between = shape.expert_parallel if name.endswith(("gate_up", "down")) else 1
            for rank in range(step_between, shape.world):
                mine, other = (found[one][number].parameters[name] for one in (rank, rank - step_between))
                assert torch.equal(mine, other), (name, rank)


def with_an_idle_rank(rank: int, shape: MeshShape, case: Case) -> Tensor:
    mesh = mesh_of(shape)
    model = TrainModel(case.config, GivenWeights(case.parameters), mesh, torch.float64)
    batch = case.batch(0)
    if rank:
        batch = Batch(batch.ids_BL[:0], batch.labels_BL[:0], batch.positions_BL[:0], batch.tasks_B[:0])
    with torch.no_grad():
        return model(batch).nats


@pytest.mark.parametrize("routing", [BY_TOKEN, Routing("sentence", 3), Routing("task", 0, ("one", "two"))], ids=str)
def test_a_rank_without_a_sequence_takes_part(routing: Routing, ranks: Ranks, seed: int) -> None:
    case = replace(cases(seed)[0], config=small_config(routing=routing))
    nats, nothing = ranks.run(2, with_an_idle_rank, MeshShape(2, 1), case)
    expected = TrainModel(case.config, GivenWeights(case.parameters), lone_mesh(), torch.float64)(case.batch(0)).nats
    assert float(nats) == pytest.approx(float(expected.detach()), rel=TINY)
    assert float(nothing) == 0


def powers_of_two(rank: int, shape: MeshShape) -> tuple[Tensor, Tensor, float]:
    mesh = mesh_of(shape)
    dense, experts = (torch.full((3, 2), 2.0**rank, dtype=torch.float64) for _ in range(2))
    reduce_gradients([dense], [experts], mesh)
    ones = [torch.ones(4, dtype=torch.float64)]
    return dense * mesh.world, experts * mesh.world, global_norm(ones, ones, mesh)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: f"{shape.expert_parallel}x{shape.expert_data_parallel}")
def test_gradients_are_summed_over_the_right_ranks(shape: MeshShape, ranks: Ranks) -> None:
    for rank, (dense, experts, norm) in enumerate(ranks.run(shape.world, powers_of_two, shape)):
        holders = [
            other for other in range(shape.world) if other % shape.expert_parallel == rank % shape.expert_parallel
        ]
        assert (dense == sum(2.0**other for other in range(shape.world))).all()
        assert (experts == sum(2.0**other for other in holders)).all()
        assert norm**2 == pytest.approx(4 + 4 * shape.expert_parallel)  # each shard of the experts once


def members(rank: int, shape: MeshShape) -> tuple[list[int], list[int]]:
    mesh = mesh_of(shape)
    groups = (mesh.ep, mesh.ep_dp)
    ep, ep_dp = ([rank] if group is None else dist.get_process_group_ranks(group) for group in groups)
    return ep, ep_dp


def test_the_groups_of_a_grid(ranks: Ranks) -> None:
    assert ranks.run(4, members, MeshShape(2, 2)) == [
        ([0, 1], [0, 2]),
        ([0, 1], [1, 3]),
        ([2, 3], [0, 2]),
        ([2, 3], [1, 3]),
    ]
