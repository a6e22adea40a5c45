"""Which experts a row goes to, and with what weight. Pure; training uses it too.

T rows, D model dim, E experts, K chosen experts per row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k_gate(rows_TD: Tensor, gate_ED: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Token-level routing as in Mixtral (arXiv 2401.04088): top-k of the logits, then softmax over the chosen k.

    Returns:
        weights_TK (float32, or float64 for float64 rows) and experts_TK (int64), best first.
    """
    logits_TE = F.linear(rows_TD, gate_ED)
    if logits_TE.dtype != torch.float64:
        logits_TE = logits_TE.float()
    chosen_TK, experts_TK = logits_TE.topk(top_k, dim=-1)
    return chosen_TK.softmax(-1), experts_TK
