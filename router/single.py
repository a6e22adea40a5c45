"""The gate and the dispatch plan of a lone row: what a sequence that decodes alone waits for, in every layer.

The same as `gating` and `plan` do, but in Python as soon as there are only a few numbers: between two layers the
weights have swept the caches, so that each further operation of torch costs 10 to 30 µs (docs/performance.md). Which of
two experts with equal logits is taken is as undetermined as it is in torch.

D model dim, E experts, K chosen experts.
"""

import math

import torch
from torch import Tensor

from router.gating import top_k_gate
from router.plan import Plan, dispatch


def route_row(row_1D: Tensor, gate_row_1D: Tensor, gate_ED: Tensor, top_k: int) -> tuple[Tensor, Plan]:
    """Returns the row's copies [K, D] in the order of their experts, and the plan to combine the answers with.

    Args:
        gate_row_1D: What the gate sees: at token level the row itself.
    """
    logits_E: list[float] = gate_row_1D.to(gate_ED.dtype).mm(gate_ED.t()).tolist()[0]
    if not math.isfinite(sum(logits_E)):  # a NaN has no order: left to torch, as for many rows
        return dispatch(row_1D, *top_k_gate(gate_row_1D, gate_ED, top_k), len(logits_E))
    by_logit = sorted(range(len(logits_E)), key=logits_E.__getitem__)
    chosen = sorted(by_logit[-top_k:])
    best = logits_E[by_logit[-1]]
    shares = [math.exp(logits_E[expert] - best) for expert in chosen]  # softmax over the chosen ones
    total = sum(shares)
    exact = torch.float64 if gate_ED.dtype == torch.float64 else torch.float32
    weights_1K = torch.tensor([[share / total for share in shares]], dtype=exact, device=row_1D.device)
    counts = [0] * len(logits_E)
    for expert in chosen:
        counts[expert] = 1
    return torch.cat((row_1D,) * top_k), Plan(weights_1K, None, counts)
