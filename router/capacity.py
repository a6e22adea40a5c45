"""The dispatch plan of fixed-size expert buffers (E, C, D): an expert takes C row copies, what is beyond is dropped.

As in GShard (arXiv 2006.16668): every row's best expert is served before any row's second one, rows in their order. The
weights of the copies that are kept stay as the gate gave them. Pure; serving is always dropless.

T rows, D model dim, E experts, K chosen experts per row, C capacity, N = T*K copies, M copies that are kept.

Worked example, T=3, K=2, E=2, C=2, experts_TK = [[0, 1], [0, 1], [0, 1]]: for expert 0 the best choices of rows 0 and 1
are kept and that of row 2 is dropped; for expert 1 the second choices of rows 0 and 1. kept + dropped = 4 + 2 = T*K.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What `dispatch_to_capacity` decided and `combine_from_capacity` consumes.

    Args:
        weights_M: The gate's weight of each copy that is kept.
        rows_M: Its row.
        slots_M: Its place among the E*C.
        num_rows: T.
        counts: Copies asked of each expert, also those that were dropped.
        num_dropped: Copies that found their expert full.
    """

    weights_M: Tensor
    rows_M: Tensor
    slots_M: Tensor
    num_rows: int
    counts: list[int]
    num_dropped: int


def capacity_of(num_rows: int, top_k: int, num_experts: int, factor: float) -> int:
    """Returns C: `factor` times what each expert would get if all got the same, at least 1 and at most all rows.

    >>> capacity_of(1024, 2, 8, 1.25), capacity_of(3, 2, 8, 1.0), capacity_of(4, 2, 2, 10.0)
    (320, 1, 4)
    """
    return max(1, min(num_rows, math.ceil(factor * num_rows * top_k / num_experts - 1e-9)))


def dispatch_to_capacity(
    rows_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, num_experts: int, capacity: int
) -> tuple[Tensor, CapacityPlan]:
    """Returns the experts' buffers [E, C, D], zero where nobody came, and the plan to combine the answers with."""
    num_rows, top_k = experts_TK.shape
    device = rows_TD.device
    wanted_N = experts_TK.t().reshape(-1).cpu().numpy()  # the best choice of every row, then the second ones
    order_N = wanted_N.argsort(kind="stable")
    counts_E = np.bincount(wanted_N, minlength=num_experts)
    place_N = np.arange(len(order_N)) - np.repeat(counts_E.cumsum() - counts_E, counts_E)  # among those of its expert
    kept_M = order_N[place_N < capacity]
    slots_M = (wanted_N[order_N] * capacity + place_N)[place_N < capacity]
    choices_M, rows_M = torch.from_numpy(kept_M // max(num_rows, 1)), torch.from_numpy(kept_M % max(num_rows, 1))
    plan = CapacityPlan(
        weights_M=weights_TK[rows_M.to(device), choices_M.to(device)],
        rows_M=rows_M.to(device),
        slots_M=torch.from_numpy(slots_M).to(device),
        num_rows=num_rows,
        counts=counts_E.tolist(),
        num_dropped=num_rows * top_k - len(kept_M),
    )
    buffers_SD = rows_TD.new_zeros(num_experts * capacity, rows_TD.shape[1])
    sent_SD = buffers_SD.index_copy(0, plan.slots_M, rows_TD.index_select(0, plan.rows_M))
    return sent_SD.view(num_experts, capacity, -1), plan


def combine_from_capacity(plan: CapacityPlan, answers_ECD: Tensor) -> Tensor:
    """Returns sum over a row's kept copies of weight times answer, [T, D]; zero for a row that lost all of them."""
    answers_MD = answers_ECD.flatten(0, 1).index_select(0, plan.slots_M)
    weighted_MD = answers_MD * plan.weights_M.to(answers_MD.dtype).unsqueeze(1)
    return weighted_MD.new_zeros(plan.num_rows, answers_MD.shape[1]).index_add(0, plan.rows_M, weighted_MD)
