"""Log-probabilities to report: log-softmax of the raw logits, before bias, penalties and temperature.

Legend: R rows, T prompt rows, V vocabulary, M alternatives.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attention.vocabulary import BlockedLogits, Floats
from protos.generation_pb2 import TokenLogprob

CHUNK_ROWS = 64  # bounds the float32 copies of a long prompt's logits
SOFTMAX_ROWS = 8  # a result this small stays in the processor's cache and in memory the allocator already holds


def score(logits_RV: Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenLogprob]:
    """Scores one token per row of raw logits [R, V], float32 or bf16, with that row's number of alternatives.

    Rank 1 is the most probable token; equally probable tokens share a rank. Rows must hold no NaN.
    """
    assert len(token_ids) == len(num_alternatives) == logits_RV.shape[0]
    if not token_ids:
        return []
    raw_RV = logits_RV.float().contiguous()
    blocked = BlockedLogits.of(raw_RV)
    ids_R1 = torch.tensor(token_ids, dtype=torch.int64, device=raw_RV.device)[:, None]
    chosen_R = raw_RV.gather(1, ids_R1)[:, 0].cpu().numpy()
    log_total_R = _log_totals(blocked)
    logprobs = (chosen_R - log_total_R).tolist()
    ranks = (blocked.count_above(chosen_R) + 1).tolist()
    most = max(num_alternatives)
    alternatives = _alternatives(blocked, log_total_R, most) if most else [([], [])] * len(token_ids)
    return [
        TokenLogprob(
            token_id=token_id, logprob=logprob, rank=rank, alternative_ids=ids[:num], alternative_logprobs=values[:num]
        )
        for token_id, logprob, rank, (ids, values), num in zip(
            token_ids, logprobs, ranks, alternatives, num_alternatives, strict=True
        )
    ]


def prompt_logprobs(logits_TV: Tensor, next_ids: Sequence[int], num_alternatives: int) -> list[TokenLogprob]:
    """Scores a prompt: row t of the raw logits [T, V] predicts `next_ids[t]`, the prompt's token that follows it.

    A prompt that is computed in chunks is scored chunk by chunk; its first token has no score.
    """
    assert len(next_ids) == logits_TV.shape[0]
    scores: list[TokenLogprob] = []
    for start in range(0, len(next_ids), CHUNK_ROWS):
        ids = next_ids[start : start + CHUNK_ROWS]
        scores += score(logits_TV[start : start + CHUNK_ROWS], ids, [num_alternatives] * len(ids))
    return scores


def _log_totals(blocked: BlockedLogits) -> Floats:
    """log(sum(exp)) of each row; softmax makes the best token 1 / sum(exp(x - max)), and is twice as fast."""
    few_rows = blocked.logits_RV.split(SOFTMAX_ROWS)
    best_share_R = torch.cat([torch.softmax(rows_RV, dim=-1).amax(dim=-1) for rows_RV in few_rows])
    return blocked.maxima_RN.max(axis=-1) - np.log(best_share_R.cpu().numpy())


def _alternatives(blocked: BlockedLogits, log_total_R: Floats, count: int) -> list[tuple[list[int], list[float]]]:
    best = blocked.largest(count)
    logprobs_RM = best.values_RM - log_total_R[:, None]
    return list(zip(best.ids_RM.tolist(), logprobs_RM.tolist(), strict=True))
