"""One process against the naive model: outputs, losses and every gradient, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import MixtralConfig
from model.routing import Routing
from router.capacity import capacity_of
from tests.training import naive
from tests.training.naive import GivenWeights, parameters_of, random_batch, small_config
from training.losses import LossSettings, losses_of
from training.mesh import lone_mesh
from training.model import TrainModel

TINY = 1e-12


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("factor", [None, 0.7, 1.5])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (5, 3), (3, 1)])
def test_outputs_losses_and_gradients_are_the_naive_ones(
    num_experts: int, top_k: int, factor: float | None, window: int | None, tie: bool, seed: int
) -> None:
    check(small_config(num_experts=num_experts, top_k=top_k, window=window, tie_embeddings=tie), factor, seed)


@pytest.mark.parametrize("factor", [None, 0.7])
@pytest.mark.parametrize(
    "routing",
    [Routing("sentence", 1), Routing("sentence", 4), Routing("sentence", 50), Routing("task", 0, ("one", "two"))],
    ids=str,
)
def test_so_are_those_of_other_levels(routing: Routing, factor: float | None, seed: int) -> None:
    check(small_config(routing=routing), factor, seed)


def test_what_comes_later_changes_nothing_before(seed: int) -> None:
    config = small_config(routing=Routing("sentence", 6))
    model = TrainModel(config, GivenWeights(parameters_of(config, seed)), lone_mesh(), torch.float64)
    batch = random_batch(config, seed, num_sequences=2, length=12)
    other = replace(batch, ids_BL=batch.ids_BL.clone())
    other.ids_BL[:, 5:] = (other.ids_BL[:, 5:] + 1) % config.vocab_size
    before, after = (model.rows(one)[0].view(2, 12, -1) for one in (batch, other))
    # Not bit for bit: how many rows an expert gets decides how its products are rounded.
    assert distance(before[:, :5], after[:, :5]) < TINY
    assert distance(before[:, 5:], after[:, 5:]) > 1e-3


def check(config: MixtralConfig, factor: float | None, seed: int) -> None:
    num_experts, top_k = config.num_experts, config.top_k
    parameters = parameters_of(config, seed)
    batch = random_batch(config, seed, num_sequences=3, length=12)
    capacity = None if factor is None else capacity_of(36, top_k, num_experts, factor)
    settings = LossSettings(balance=0.3, router_z=0.1)
    model = TrainModel(config, GivenWeights(parameters), lone_mesh(), torch.float64)
    losses = losses_of(model(batch, capacity), 36, top_k, settings, lone_mesh())
    losses.share.backward()

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    expected = naive.losses_of(leaves, config, [batch], balance=0.3, router_z=0.1, capacity=capacity)
    expected.total.backward()
    assert distance(model.rows(batch, capacity)[0], expected.rows[0]) < TINY
    assert losses.nats == pytest.approx(float(expected.nats.detach()), rel=TINY)
    assert losses.balance == pytest.approx(float(expected.balance.detach()), rel=TINY)
    assert losses.router_z == pytest.approx(float(expected.router_z.detach()), rel=TINY)
    assert losses.dropped_per_layer == expected.dropped
    assert losses.rows_per_expert == expected.counts
    assert all(sum(counts) == 36 * top_k for counts in losses.rows_per_expert)
    for name, parameter in model.named_parameters():
        gradient = leaves[name].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert distance(parameter.grad, gradient) < TINY, name
