"""Experts on several ranks: what is there first changes no bit, and what is kept for the way back is not too much."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.ranks import Ranks
from training import exchange
from training.exchange import start_counts
from training.expert_parallel import expert_parallel_ffn, plan_exchange
from training.ffn import expert_ffn
from training.mesh import MeshShape, make_mesh

WIDTH, FFN, EXPERTS_OF_A_RANK = 6, 5, 2


def weights(seed: int, experts: slice) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(3 * EXPERTS_OF_A_RANK, 2 * FFN, WIDTH, dtype=torch.float64, generator=generator)
    down = torch.randn(3 * EXPERTS_OF_A_RANK, WIDTH, FFN, dtype=torch.float64, generator=generator)
    return gate_up[experts].clone().requires_grad_(), down[experts].clone().requires_grad_()


def rows_of(seed: int, rank: int, world: int) -> tuple[Tensor, list[int]]:
    """Rows sorted by expert, and each expert's count: other ones on every rank, some of them 0."""
    generator = torch.Generator().manual_seed(seed + rank)
    counts = torch.randint(0, 4, (world * EXPERTS_OF_A_RANK,), generator=generator)
    counts[(seed + rank) % len(counts)] = 0
    return torch.randn(int(counts.sum()), WIDTH, dtype=torch.float64, generator=generator), counts.tolist()


def on_a_rank(rank: int, world: int, seed: int, arrived: bool | None) -> dict[str, Any]:
    """Outputs and gradients; `arrived`: what is said of others' rows, None: the truth."""
    truth = exchange.PendingExchange.arrived
    if arrived is not None:
        exchange.PendingExchange.arrived = lambda self: arrived
    try:
        return _on_a_rank(rank, world, seed)
    finally:
        exchange.PendingExchange.arrived = truth


def _on_a_rank(rank: int, world: int, seed: int) -> dict[str, Any]:
    group = make_mesh(MeshShape(world, 1), torch.device("cpu")).ep
    assert group is not None
    here = slice(rank * EXPERTS_OF_A_RANK, (rank + 1) * EXPERTS_OF_A_RANK)
    sorted_ND, counts = rows_of(seed, rank, world)
    parts = list(sorted_ND.split(counts))
    ordered = [*parts[: here.start], *parts[here.stop :], *parts[here]]
    sent_ND = torch.cat(ordered).requires_grad_()
    counts_E = torch.tensor(counts)
    received_Ge = start_counts(counts_E.view(world, -1), group).wait()
    plan = plan_exchange(counts_E.numpy(), received_Ge.numpy(), group, torch.device("cpu"))
    gate_up, down = weights(seed, here)
    out_ND = expert_parallel_ffn(sent_ND, gate_up, down, plan)
    kept: Any = out_ND.grad_fn
    own_bytes = kept.saved_tensors[0].untyped_storage().nbytes()
    generator = torch.Generator().manual_seed(seed)
    out_ND.backward(torch.randn(WIDTH, dtype=torch.float64, generator=generator).expand_as(out_ND))
    place = [e for e in range(len(counts)) if not here.start <= e < here.stop] + list(range(here.start, here.stop))

    def back_in_order(values_ND: Tensor) -> list[Tensor]:
        found = values_ND.split([counts[e] for e in place])
        return [found[place.index(e)] for e in range(len(counts))]

    assert sent_ND.grad is not None
    return {
        "out": torch.cat(back_in_order(out_ND.detach())),
        "rows": torch.cat(back_in_order(sent_ND.grad)),
        "gate_up": gate_up.grad,
        "down": down.grad,
        "own bytes": (own_bytes, sum(counts[here]) * WIDTH * 8),
    }


@pytest.mark.parametrize("world", [2, 3])
def test_whatever_comes_first_the_bits_are_the_same_and_right(world: int, ranks: Ranks, seed: int) -> None:
    truly = ranks.run(world, on_a_rank, world, seed, None)
    for arrived in (True, False):
        for one, other in zip(ranks.run(world, on_a_rank, world, seed, arrived), truly, strict=True):
            assert one.keys() == other.keys()
            assert all(
                one[name] == other[name] if name == "own bytes" else torch.equal(one[name], other[name]) for name in one
            )
    gate_up, down = weights(seed, slice(0, world * EXPERTS_OF_A_RANK))
    generator = torch.Generator().manual_seed(seed)
    gradient_D = torch.randn(WIDTH, dtype=torch.float64, generator=generator)
    for rank, found in enumerate(truly):
        rows_ND, counts = rows_of(seed, rank, world)
        out_ND = expert_ffn(rows_ND.requires_grad_(), gate_up, down, counts)
        out_ND.backward(gradient_D.expand_as(out_ND))
        assert torch.allclose(found["out"], out_ND.detach(), rtol=1e-12, atol=1e-12)
        assert rows_ND.grad is not None
        assert torch.allclose(found["rows"], rows_ND.grad, rtol=1e-12, atol=1e-12)
    for name, whole in (("gate_up", gate_up.grad), ("down", down.grad)):
        assert whole is not None
        assert torch.allclose(torch.cat([found[name] for found in truly]), whole, rtol=1e-12, atol=1e-12)


def test_no_more_is_kept_than_the_rows_that_stay(ranks: Ranks, seed: int) -> None:
    for found in ranks.run(2, on_a_rank, 2, seed, None):
        kept, needed = found["own bytes"]
        assert kept == needed


def timeouts(rank: int) -> list[float]:
    mesh = make_mesh(MeshShape(2, 2), torch.device("cpu"), timeout_s=77)
    assert mesh.ep is not None
    assert mesh.ep_dp is not None
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in (mesh.ep, mesh.ep_dp)]


def test_every_group_has_the_time_out_that_was_given(ranks: Ranks) -> None:
    assert ranks.run(4, timeouts) == [[77.0, 77.0]] * 4
