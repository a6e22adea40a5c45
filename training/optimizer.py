"""The optimizer and its learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from training.spec_schema import OptimizerSpec


def make_optimizer(parameters: Iterable[nn.Parameter], spec: OptimizerSpec) -> Optimizer:
    """Returns the optimizer (AdamW: arXiv 1711.05101); its learning rate is set before each step."""
    every = list(parameters)
    groups = [
        {"params": [parameter for parameter in every if parameter.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [parameter for parameter in every if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    if spec.name == "sgd":
        return SGD(groups, lr=spec.peak_lr, momentum=spec.momentum, foreach=True)
    fused = all(parameter.dtype != torch.float64 for parameter in every)
    betas = (spec.beta1, spec.beta2)
    return AdamW(groups, lr=spec.peak_lr, betas=betas, eps=spec.eps, fused=fused)


def learning_rate(step: int, num_steps: int, spec: OptimizerSpec) -> float:
    """Returns the learning rate of a step, counted from 0.

    >>> spec = OptimizerSpec(peak_lr=1.0, final_lr=0.0, warmup_steps=2)
    >>> [round(learning_rate(step, 6, spec), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.25, 0.0]
    """
    if step < spec.warmup_steps:
        return spec.peak_lr * (step + 1) / spec.warmup_steps
    turn = (step - spec.warmup_steps) / max(1, num_steps - 1 - spec.warmup_steps)
    return spec.final_lr + (spec.peak_lr - spec.final_lr) * 0.5 * (1 + math.cos(math.pi * turn))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets it for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = rate
