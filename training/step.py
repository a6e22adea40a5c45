"""One training step: forward, backward, gradients over the ranks, update.

T rows of a rank.
"""

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch.optim import Optimizer

from router.capacity import capacity_of
from training.gate_input import Jitter
from training.gradients import clip, global_norm, reduce_gradients
from training.losses import Losses, LossSettings, losses_of
from training.mesh import Mesh
from training.model import Batch, TrainModel


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient is no number any more; nothing was updated by this step."""


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed.

    Args:
        capacity_factor: The experts' buffers, see `capacity_of`; None: dropless.
        jitter: The share of noise in what the gates see.
        clip_norm: The longest that the gradient may be; None: any.
        seed: Of the noise.
    """

    losses: LossSettings = field(default_factory=LossSettings)
    capacity_factor: float | None = None
    jitter: float = 0.0
    clip_norm: float | None = 1.0
    seed: int = 0


@dataclass(frozen=True)
class StepFigures:
    """What a step found, of the whole batch. `gradient_norm` is before clipping."""

    losses: Losses
    gradient_norm: float


def train_step(
    model: TrainModel,
    optimizer: Optimizer,
    batch: Batch,
    step: int,
    most_rows: int,
    settings: StepSettings,
    mesh: Mesh,
) -> StepFigures:
    """Makes one step; every rank calls it with its part of the batch.

    Args:
        step: Counted from 0; what is random in a step follows from it.
        most_rows: The most rows T that any rank has in this step.

    Raises:
        NonFiniteLoss: Says which of the two, and the step.
    """
    config = model.config
    for parameter in model.parameters():
        parameter.grad = None
    outcome = model(batch, capacity_for(model, most_rows, settings), _jitter(step, settings, mesh))
    losses = losses_of(outcome, batch.ids_BL.numel(), config.top_k, settings.losses, mesh)
    if not math.isfinite(losses.nats):
        raise NonFiniteLoss(f"the loss of step {step} is {losses.nats}")
    losses.share.backward()
    dense = [_gradient(parameter) for _, parameter in model.dense_parameters()]
    experts = [_gradient(parameter) for _, parameter in model.expert_parameters()]
    reduce_gradients(dense, experts, mesh)
    norm = global_norm(dense, experts, mesh)
    if not math.isfinite(norm):
        raise NonFiniteLoss(f"the gradient of step {step} has the length {norm} (its loss is {losses.nats:g})")
    if settings.clip_norm is not None:
        clip([*dense, *experts], norm, settings.clip_norm)
    optimizer.step()
    return StepFigures(losses, norm)


def capacity_for(model: TrainModel, most_rows: int, settings: StepSettings) -> int | None:
    """Returns the capacity of every rank's buffers; None: dropless."""
    if settings.capacity_factor is None:
        return None
    return capacity_of(most_rows, model.config.top_k, model.config.num_experts, settings.capacity_factor)


def _jitter(step: int, settings: StepSettings, mesh: Mesh) -> Jitter | None:
    if settings.jitter == 0:
        return None
    digest = hashlib.sha256(f"{settings.seed}/{step}/{mesh.rank}".encode()).digest()
    generator = torch.Generator(mesh.device).manual_seed(int.from_bytes(digest[:4], "big"))  # a CPU's reads 32 bits
    return Jitter(settings.jitter, generator)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:  # nothing was asked of it; the others' gradients are added to this all the same
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
