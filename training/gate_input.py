"""What the gates of a step go by: the rows, the means of their sentences, or the tasks of their sequences.

B sequences, L positions, T = B*L rows, D model dim, E experts, S tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.routing import Routing
from model.sentence import Runs, runs_of_positions, sentence_means
from router.gating import gate_logits


class Jitter:
    """Multiplies what a gate sees by noise from 1 - share to 1 + share (Switch Transformers, arXiv 2101.03961)."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        self._share = share
        self._generator = generator

    def __call__(self, rows_TD: Tensor) -> Tensor:
        noise_TD = torch.empty_like(rows_TD).uniform_(1 - self._share, 1 + self._share, generator=self._generator)
        return rows_TD * noise_TD


@dataclass(frozen=True)
class GateInput:
    """Made once for a step, used by every layer.

    Args:
        jitter: Noise in what the gates see; None: none. Tasks are chosen for as they are.
        sentences: At level sentence: the rows that each mean is over.
        tasks_T: At level task: each row's task.
    """

    jitter: Jitter | None = None
    sentences: Runs | None = None
    tasks_T: Tensor | None = None

    def logits(self, rows_TD: Tensor, gate: Tensor) -> Tensor:
        """Returns each expert's logit for each row, [T, E]; differentiable.

        Args:
            gate: [E, D], or at level task [S, E].
        """
        if self.tasks_T is not None:
            table_SE = gate if gate.dtype == torch.float64 else gate.float()
            return table_SE[self.tasks_T]
        # Noise before the means: a sentence keeps one choice.
        seen_TD = rows_TD if self.jitter is None else self.jitter(rows_TD)
        return gate_logits(seen_TD if self.sentences is None else sentence_means(seen_TD, self.sentences)[0], gate)


def gate_input_of(routing: Routing, positions_BL: Tensor, tasks_B: Tensor, jitter: Jitter | None) -> GateInput:
    """Returns what the gates of a batch go by.

    Args:
        positions_BL: Each position's place in its document: sentences begin where it is 0.
        tasks_B: Each sequence's task; read at level task alone.
    """
    if routing.level == "task":
        return GateInput(tasks_T=tasks_B.repeat_interleave(positions_BL.shape[1]))
    if routing.level == "sentence":
        return GateInput(jitter, runs_of_positions(positions_BL.flatten(), routing.positions))
    return GateInput(jitter)
