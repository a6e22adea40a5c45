"""A naive sampler for one row, in plain NumPy float64 with full sorts: what the fast one must agree with."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protos.generation_pb2 import Sampling


def edited(
    logits: npt.NDArray[np.float64],
    sampling: Sampling,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    eos_token_ids: Sequence[int],
) -> npt.NDArray[np.float64]:
    """Bias, tokens forbidden for a while, penalties, those forbidden altogether, in this order."""
    logits = logits.copy()
    for token_id, bias in sampling.logit_bias.items():
        logits[token_id] += bias
    if len(output_ids) < sampling.min_tokens:
        logits[[*eos_token_ids, *sampling.stop_token_ids]] = -np.inf
    if sampling.HasField("repetition_penalty"):
        for token_id in {*prompt_ids, *output_ids}:
            old = logits[token_id]
            logits[token_id] = old / sampling.repetition_penalty if old > 0 else old * sampling.repetition_penalty
    for token_id in set(output_ids):
        logits[token_id] -= sampling.presence_penalty
        logits[token_id] -= sampling.frequency_penalty * list(output_ids).count(token_id)
    if sampling.allowed_token_ids:
        logits[[token_id not in sampling.allowed_token_ids for token_id in range(len(logits))]] = -np.inf
    left = list(sampling.bad_word_ids)
    for length in sampling.num_ids_per_bad_word:
        *before, last = left[:length]
        del left[:length]
        if list(output_ids)[len(output_ids) - len(before) :] == before and len(before) <= len(output_ids):
            logits[last] = -np.inf
    return logits


def distribution(logits: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.float64]:
    """Probabilities that a token is drawn with: temperature, min-p, top-k, top-p; ties go to lower ids."""
    if sampling.temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    weights[weights < sampling.min_p] = 0.0
    order = np.argsort(-logits, kind="stable")
    if sampling.HasField("top_k"):
        weights[order[sampling.top_k :]] = 0.0
    weights /= weights.sum()
    if sampling.HasField("top_p"):
        before = 0.0
        for token_id in order:
            mass = weights[token_id]
            if before >= sampling.top_p and sampling.top_p < 1:
                weights[token_id] = 0.0
            before += mass
    return weights / weights.sum()
