"""Log-probabilities to report: log-softmax of the raw logits, before bias, penalties and temperature.

Legend: R rows, T prompt rows, V vocabulary, M alternatives.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from attention.vocabulary import BlockedLogits, Floats, Ints
from protos.generation_pb2 import TokenLogprob

CHUNK_ROWS = 64  # bounds the float32 copies of a long prompt's logits
SOFTMAX_ROWS = 8  # a result this small stays in the processor's cache and in memory the allocator already holds


def score(
    logits_RV: Tensor,
    token_ids: Sequence[int],
    num_alternatives: Sequence[int],
    listed: Mapping[int, Ints] = MappingProxyType({}),
) -> list[TokenLogprob]:
    """Scores one token per row of raw logits [R, V], float32 or bf16, with that row's number of alternatives.

    A row in `listed` has the alternatives that are named there instead of the best ones.

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
    chosen = [(ids[:num], values[:num]) for (ids, values), num in zip(alternatives, num_alternatives, strict=True)]
    for row, pair in _listed(raw_RV, log_total_R, listed):
        chosen[row] = pair
    return [
        TokenLogprob(token_id=token_id, logprob=logprob, rank=rank, alternative_ids=ids, alternative_logprobs=values)
        for token_id, logprob, rank, (ids, values) in zip(token_ids, logprobs, ranks, chosen, strict=True)
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


def _listed(
    raw_RV: Tensor, log_total_R: Floats, listed: Mapping[int, Ints]
) -> Iterator[tuple[int, tuple[list[int], list[float]]]]:
    """For each row that names its alternatives: the row, their ids and their log-probabilities."""
    if not listed:
        return
    lengths = [len(ids) for ids in listed.values()]
    rows_I, ids_I = np.repeat(np.fromiter(listed, np.int64), lengths), np.concatenate(list(listed.values()))
    index = (torch.from_numpy(rows_I).to(raw_RV.device), torch.from_numpy(ids_I).to(raw_RV.device))
    logprobs_I = raw_RV[index].cpu().numpy() - log_total_R[rows_I]
    for (row, ids), values in zip(listed.items(), np.split(logprobs_I, np.cumsum(lengths)[:-1]), strict=True):
        yield row, (ids.tolist(), values.tolist())


def _alternatives(blocked: BlockedLogits, log_total_R: Floats, count: int) -> list[tuple[list[int], list[float]]]:
    best = blocked.largest(count)
    logprobs_RM = best.values_RM - log_total_R[:, None]
    return list(zip(best.ids_RM.tolist(), logprobs_RM.tolist(), strict=True))
