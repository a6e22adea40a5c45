"""The dispatch plan: where each row's copies go, and how the answers come back together. Pure.

Training sorts by the same order, and moves rows by it with gradients of its own (training/copies.py).

T rows, D model dim, E experts, K chosen experts per row, N = T*K row copies.

Worked example, T=2 rows, K=2, E=3, experts_TK = [[2, 0], [0, 1]]:
    copies, in row order       0:(row 0 -> 2)  1:(row 0 -> 0)  2:(row 1 -> 0)  3:(row 1 -> 1)
    order (sorted by expert)   [1, 2, 3, 0]    so rows [0, 1, 1, 0] are sent, counts = [2, 1, 1]
    place (where copy i went)  [3, 0, 1, 2]    the inverse of order
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `dispatch` decided and `combine` consumes.

    Args:
        weights_TK: The gate's weights.
        place_N: Where copy i (row i // K) stands among the copies sorted by expert; None: there is one row, and its
            weights are in the order of its copies.
        counts: Copies per expert, for every expert.
    """

    weights_TK: Tensor
    place_N: Tensor | None
    counts: list[int]


def sort_copies(experts_TK: Tensor, num_experts: int) -> tuple[Ints, Ints, list[int]]:
    """Returns order_N and place_N of the copies sorted by expert (ties in row order), and each expert's count."""
    # Small integer work: NumPy does it in a third of torch's time, and a GPU would have to hand over the counts anyway.
    flat_N = experts_TK.cpu().numpy().reshape(-1)
    order_N = flat_N.argsort(kind="stable")
    return order_N, inverse(order_N), np.bincount(flat_N, minlength=num_experts).tolist()


def inverse(order_N: Ints) -> Ints:
    """Returns the permutation that undoes one.

    >>> inverse(np.array([1, 2, 3, 0]))
    array([3, 0, 1, 2])
    """
    place_N = np.empty_like(order_N)
    place_N[order_N] = np.arange(len(order_N))
    return place_N


def dispatch(rows_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Plan]:
    """Returns the row copies sorted by expert [T*K, D] and the plan to combine the answers with."""
    order_N, place_N, counts = sort_copies(experts_TK, num_experts)
    device = rows_TD.device
    sent_ND = rows_TD.index_select(0, torch.from_numpy(order_N // experts_TK.shape[1]).to(device))
    return sent_ND, Plan(weights_TK, torch.from_numpy(place_N).to(device), counts)


def combine(plan: Plan, answers_ND: Tensor) -> Tensor:
    """Returns sum over k of weight times answer, [T, D], in the answers' dtype.

    Args:
        answers_ND: Expert outputs, in the order in which the rows were sent.
    """
    weights_TK = plan.weights_TK.to(answers_ND.dtype)
    if plan.place_N is None:
        return weights_TK.mm(answers_ND)
    num_rows, top_k = weights_TK.shape
    answers_TKD = answers_ND.index_select(0, plan.place_N).view(num_rows, top_k, answers_ND.shape[1])
    return (answers_TKD * weights_TK.unsqueeze(-1)).sum(1)
