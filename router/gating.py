"""Which experts a row goes to, and with what weight. Pure; training uses it too.

T rows (at sentence level, the means of `model/sentence.py` instead), D model dim, E experts, K chosen experts per row,
S tasks.
"""

from collections.abc import Collection

import torch
from torch import Tensor


def gate_weights(gate_ED: Tensor) -> Tensor:
    """Returns a gate as `top_k_gate` reads it fastest: not below float32, each expert's weights a column in memory.

    A product this small in bfloat16 would spend its time on oneDNN's preparations (docs/performance.md).
    """
    exact_ED = gate_ED if gate_ED.dtype == torch.float64 else gate_ED.float()
    return exact_ED.t().contiguous().t()


def top_k_gate(rows_TD: Tensor, gate_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Token-level routing as in Mixtral (arXiv 2401.04088): top-k of the logits, then softmax over the chosen k.

    Computes the logits in the gate's dtype. With a float32 gate, bfloat16 rows go where the logits say before they are
    rounded; a bfloat16 gate, as transformers has it, sees two logits that are 0.4 % apart as equal.

    Returns:
        weights_TK (float32, or float64 for a float64 gate) and experts_TK (int64), best first.
    """
    return choose(gate_logits(rows_TD, gate_ED), top_k)


def choose(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The second half of `top_k_gate`: from the logits to weights_TK and experts_TK, best first. Differentiable."""
    chosen_TK, experts_TK = logits_TE.topk(top_k, dim=-1)
    return chosen_TK.softmax(-1), experts_TK


def top_k_living(rows_TD: Tensor, gate_ED: Tensor, top_k: int, missing: Collection[int]) -> tuple[Tensor, Tensor]:
    """`top_k_gate` with the logits of the `missing` experts at minus infinity; of fewer living ones than k, all.

    At least one expert must live.
    """
    return _choose_living(gate_logits(rows_TD, gate_ED), top_k, missing)


def task_choices(task_gate_SE: Tensor, top_k: int, missing: Collection[int] = ()) -> tuple[Tensor, Tensor]:
    """Task-level routing: top-k of each task's logits, then softmax over the chosen k; `missing` as in `top_k_living`.

    Returns:
        weights_SK (float32, or float64 for a float64 gate) and experts_SK (int64), best first.
    """
    logits_SE = task_gate_SE if task_gate_SE.dtype == torch.float64 else task_gate_SE.float()
    if missing:
        return _choose_living(logits_SE, top_k, missing)
    return choose(logits_SE, top_k)


def top_k_task(tasks_T: Tensor, task_gate_SE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Returns weights_TK and experts_TK of rows, as `top_k_gate` does, by the number of each row's task (int64)."""
    weights_SK, experts_SK = task_choices(task_gate_SE, top_k)
    return weights_SK[tasks_T], experts_SK[tasks_T]


def _choose_living(logits_TE: Tensor, top_k: int, missing: Collection[int]) -> tuple[Tensor, Tensor]:
    # Left out rather than overwritten: where a living expert's logit is minus infinity too, top-k could not tell.
    living = [expert for expert in range(logits_TE.shape[1]) if expert not in missing]
    living_E = torch.tensor(living, device=logits_TE.device)
    chosen_TK, places_TK = logits_TE.index_select(1, living_E).topk(min(top_k, len(living)), dim=-1)
    return chosen_TK.softmax(-1), living_E[places_TK]


def gate_logits(rows_TD: Tensor, gate_ED: Tensor) -> Tensor:
    """Returns each expert's logit for each row, [T, E]: float32, or float64 for a float64 gate. Differentiable."""
    logits_TE = rows_TD.to(gate_ED.dtype).mm(gate_ED.t())
    return logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
