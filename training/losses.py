"""What a step minimises: cross-entropy, a load-balancing loss and a router z-loss, each a mean over the whole batch.

Every rank computes a share: its own rows, and the whole batch's counts. The shares are scaled so that their mean over
the ranks is the loss, and the mean of their gradients is its gradient, however many labels each rank has.

E experts, K chosen experts per row.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from training.mesh import Mesh
from training.model import Outcome

Scope = Literal["batch", "rank"]


@dataclass(frozen=True)
class LossSettings:
    """How much each part of the loss counts.

    Args:
        balance: The load-balancing loss (Switch Transformers, arXiv 2101.03961), for K experts per row: of each layer,
            E times the sum over the experts of (its share of the copies) times (its mean probability); the mean over
            the layers. 1 when all are asked equally.
        scope: Whose rows the shares and means are of: the `batch`'s, over all ranks (arXiv 2501.11873), or each
            `rank`'s, of which the loss is then the mean.
        router_z: The mean of log(sum(exp(logits)))² (ST-MoE, arXiv 2202.08906); the mean over the layers.
    """

    balance: float = 0.01
    scope: Scope = "batch"
    router_z: float = 0.0


@dataclass(frozen=True)
class Losses:
    """Of the whole batch, but for `share`.

    Args:
        share: What this rank is to differentiate.
        nats: Cross-entropy per label.
        balance, router_z: Before their coefficients.
        rows_per_expert: Copies asked of each expert, for each layer.
        num_labels: Labels of the batch.
    """

    share: Tensor
    nats: float
    balance: float
    router_z: float
    rows_per_expert: list[list[int]]
    num_labels: int
    dropped_per_layer: list[int]


def losses_of(outcome: Outcome, num_rows: int, top_k: int, settings: LossSettings, mesh: Mesh) -> Losses:
    """Puts the loss of a step together; every rank calls it.

    Args:
        num_rows: Rows of this rank.
    """
    layers = outcome.routings
    counts_LE = torch.stack([layer.counts_E for layer in layers])
    dropped_L = torch.tensor([layer.num_dropped for layer in layers])
    sizes = torch.tensor([outcome.num_labels, num_rows])
    totals = _summed(torch.cat([sizes, dropped_L, counts_LE.flatten()]), mesh)
    num_labels, all_rows = int(totals[0]), int(totals[1])
    all_counts_LE = totals[2 + len(layers) :].view_as(counts_LE)

    of_batch = settings.scope == "batch"
    share_LE = _shares(all_counts_LE if of_batch else counts_LE, outcome.nats)
    probs_LE = torch.stack([layer.probs_E for layer in layers]) / max(all_rows if of_batch else num_rows, 1)
    scale = mesh.world if of_batch else 1
    balance = (share_LE * probs_LE).sum(-1).mean() * counts_LE.shape[1] * scale
    z = torch.stack([layer.z for layer in layers]).mean() / max(all_rows, 1) * mesh.world
    nats = outcome.nats / max(num_labels, 1) * mesh.world
    means = _mean(torch.stack([nats, balance.to(nats.dtype), z.to(nats.dtype)]).detach(), mesh).tolist()
    return Losses(
        share=nats + settings.balance * balance + settings.router_z * z,
        nats=means[0],
        balance=means[1],
        router_z=means[2],
        rows_per_expert=all_counts_LE.tolist(),
        num_labels=num_labels,
        dropped_per_layer=totals[2 : 2 + len(layers)].tolist(),
    )


def _shares(counts_LE: Tensor, like: Tensor) -> Tensor:
    totals_L1 = counts_LE.sum(-1, keepdim=True).clamp(min=1)
    return (counts_LE / totals_L1).to(like)


def _summed(values: Tensor, mesh: Mesh) -> Tensor:
    values = values.to(mesh.device)
    if mesh.everybody is not None:
        dist.all_reduce(values, group=mesh.everybody)
    return values.cpu()


def _mean(values: Tensor, mesh: Mesh) -> Tensor:
    if mesh.everybody is not None:
        dist.all_reduce(values, group=mesh.everybody)
    return values / mesh.world
