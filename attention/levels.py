"""What routers are told beside a step's rows, as the model's routing level wants it.

T rows, D model dim, R runs (decoding sequences, then chunks, as in a step's rows).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attention.routers import RouterClient
from attention.scheduler import StepPlan
from model.config import MixtralConfig
from model.sentence import SUM_DTYPE, make_runs, sentence_means
from transport.base import DegradedRows

# (layer, rows [T, D]) -> combined expert output [T, D]; raises CallError.
Experts = Callable[[int, Tensor], Tensor | DegradedRows]
# How the rows of a step reach the experts. The plan is in the order of the step's rows (`build_batch`).
StepExperts = Callable[[StepPlan], Experts]


def step_experts(client: RouterClient, config: MixtralConfig, num_lanes: int, device: torch.device) -> StepExperts:
    """Returns how the rows of each step reach the experts, at the model's routing level.

    Args:
        num_lanes: Sequences that can run at once.
    """
    if config.routing.level == "sentence":
        sums_LBD = torch.zeros(config.num_layers, num_lanes, config.hidden_size, dtype=SUM_DTYPE, device=device)
        return SentenceExperts(client, config.routing.positions, sums_LBD)
    if config.routing.level == "task":
        return lambda plan: _by_task(client, task_counts(plan))
    return lambda plan: client.exchange


class SentenceExperts:
    """Sends the means of the sequences' first rows beside the rows.

    Args:
        num_positions: `Routing.positions`.
        sums_LBD: For each layer and lane, the sum of the counted rows so far. What a lane's last sequence left is never
            read: a sequence that begins, or begins again, starts from nothing.
    """

    def __init__(self, client: RouterClient, num_positions: int, sums_LBD: Tensor) -> None:
        self._client = client
        self._num_positions = num_positions
        self._sums_LBD = sums_LBD

    def __call__(self, plan: StepPlan) -> Experts:
        """See `StepExperts`."""
        sequences, device = plan.sequences, self._sums_LBD.device
        firsts_R = np.array([sequence.num_cached for sequence in sequences], np.int64)
        counts_R = np.array([1] * len(plan.decode) + [chunk.count for chunk in plan.prefill], np.int64)
        lanes_R = torch.tensor([sequence.lane for sequence in sequences], device=device)
        runs = make_runs(firsts_R, counts_R, self._num_positions, device)

        def exchange(layer: int, rows_TD: Tensor) -> Tensor | DegradedRows:
            sums_BD = self._sums_LBD[layer]
            means_TD, sums_RD = sentence_means(rows_TD, runs, sums_BD.index_select(0, lanes_R))
            if runs.any_counted:
                sums_BD.index_copy_(0, lanes_R, sums_RD)
            return self._client.exchange_gated(layer, rows_TD, means_TD)

        return exchange


def task_counts(plan: StepPlan) -> tuple[tuple[int, int], ...]:
    """Returns tasks and how many rows each one has, in the order of the step's rows; neighbours of one task together.

    Example: two sequences of task 1 decode, and chunks of 5 and 3 rows of tasks 1 and 0 follow: ((1, 7), (0, 3)).
    """
    counts: list[tuple[int, int]] = []
    rows = [(sequence.task, 1) for sequence in plan.decode] + [(c.sequence.task, c.count) for c in plan.prefill]
    for task, count in rows:
        if counts and counts[-1][0] == task:
            count += counts.pop()[1]
        counts.append((task, count))
    return tuple(counts)


def _by_task(client: RouterClient, counts: tuple[tuple[int, int], ...]) -> Experts:
    return lambda layer, rows_TD: client.exchange_by_task(layer, rows_TD, counts)
