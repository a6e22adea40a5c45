"""The optimizer and its learning rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters follow their gradients.

    Args:
        peak_lr, final_lr, warmup_steps: The learning rate rises in a line to its peak and falls to `final_lr` along a
            cosine.
        beta1, beta2, eps: AdamW's (arXiv 1711.05101).
        momentum: SGD's.
        weight_decay: Of matrices; norms are left alone.
        clip_norm: The longest that the whole model's gradient may be; None: any.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    peak_lr: float = 1e-3
    final_lr: float = 1e-4
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Returns the optimizer; its learning rate is set before each step."""
    every = list(parameters)
    groups = [
        {"params": [parameter for parameter in every if parameter.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in every if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return SGD(groups, lr=settings.peak_lr, momentum=settings.momentum, foreach=True)
    fused = all(parameter.dtype != torch.float64 for parameter in every)
    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.peak_lr, betas=betas, eps=settings.eps, fused=fused)


def learning_rate(step: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Returns the learning rate of a step, counted from 0.

    >>> settings = OptimizerSettings(peak_lr=1.0, final_lr=0.0, warmup_steps=2)
    >>> [round(learning_rate(step, 6, settings), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < settings.warmup_steps:
        return settings.peak_lr * (step + 1) / settings.warmup_steps
    turn = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return settings.final_lr + (settings.peak_lr - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * turn))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets it for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = rate
