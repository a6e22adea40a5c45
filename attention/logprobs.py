"""Log-probabilities to report: log-softmax of the raw logits, before bias, penalties and temperature.

Legend: R rows, T prompt rows, V vocabulary, M alternatives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attention.vocabulary import largest
from protos.generation_pb2 import TokenLogprob

CHUNK_ROWS = 64  # bounds the float32 copies of a long prompt's logits


def score(logits_RV: Tensor, token_ids: Sequence[int], num_alternatives: Sequence[int]) -> list[TokenLogprob]:
    """Scores one token per row of raw logits [R, V], float32 or bf16, with that row's number of alternatives.

    Rank 1 is the most probable token; equally probable tokens share a rank. Rows must hold no NaN.
    """
    assert len(token_ids) == len(num_alternatives) == logits_RV.shape[0]
    if not token_ids:
        return []
    raw_RV = logits_RV.float()
    ids_R1 = torch.tensor(token_ids, dtype=torch.int64, device=raw_RV.device)[:, None]
    chosen_R1 = raw_RV.gather(1, ids_R1)
    log_total_R1 = _log_totals(raw_RV)
    logprobs = (chosen_R1 - log_total_R1)[:, 0].tolist()
    ranks = ((raw_RV > chosen_R1).sum(dim=-1) + 1).tolist()
    most = max(num_alternatives)
    alternatives = _alternatives(raw_RV, log_total_R1, most) if most else [([], [])] * len(token_ids)
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


def _log_totals(raw_RV: Tensor) -> Tensor:
    """log(sum(exp)) of each row, [R, 1]; softmax makes the best token 1 / sum(exp(x - max)), and is twice as fast."""
    best_share_R1 = torch.softmax(raw_RV, dim=-1).amax(dim=-1, keepdim=True)
    return raw_RV.amax(dim=-1, keepdim=True) - torch.log(best_share_R1)


def _alternatives(raw_RV: Tensor, log_total_R1: Tensor, count: int) -> list[tuple[list[int], list[float]]]:
    best = largest(raw_RV, count)
    logprobs_RM = best.values_RM - log_total_R1.cpu().numpy()
    return list(zip(best.ids_RM.tolist(), logprobs_RM.tolist(), strict=True))
