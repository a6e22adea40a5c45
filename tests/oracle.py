"""transformers' MixtralForCausalLM as the oracle for what a model in fp32 should have said.

One pass over prompt and output judges every position: greedy output is right when each token is the best one after all
that precede it. Where two experts' gate logits, or two tokens' logits, are closer than float32 can tell apart, both
answers are right; such near-ties are rare, and nothing else is excused. T positions, V vocabulary, E experts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import MixtralForCausalLM

from protos.generation_pb2 import TokenLogprob

TIE = 1e-5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verdict:
    """The oracle's logits of every position, and how many of them no near-tie between experts has touched."""

    logits_TV: Tensor
    num_certain: int

    @property
    def logprobs_TV(self) -> Tensor:
        return self.logits_TV.log_softmax(-1)


class Oracle:
    """Judges sequences of one model."""

    def __init__(self, model: MixtralForCausalLM) -> None:
        self._model = model
        self._top_k = int(model.config.num_experts_per_tok)

    @torch.inference_mode()
    def verdict(self, ids: Sequence[int]) -> Verdict:
        """Scores `ids`, at least one token."""
        answer = self._model(torch.tensor([list(ids)]), output_router_logits=True)
        certain = len(ids)
        for gate_TE in answer.router_logits:
            certain = min(certain, _first_tie(gate_TE, self._top_k))
        return Verdict(answer.logits[0], certain)

    def check_greedy(self, prompt: Sequence[int], output: Sequence[int], scores: Sequence[TokenLogprob] = ()) -> None:
        """Asserts that each output token is the best one, and its scores (of the whole vocabulary) within 1e-4."""
        verdict = self.verdict([*prompt, *output])
        for index, token_id in enumerate(output):
            position = len(prompt) + index - 1
            if position >= verdict.num_certain:
                return
            logits_V = verdict.logits_TV[position]
            missing = (logits_V.max() - logits_V[token_id]).item()
            assert missing <= TIE, f"output {index} is {token_id}; {int(logits_V.argmax())} is better by {missing}"
        if scores:
            assert len(scores) == len(output)
            check_scores(verdict, len(prompt) - 1, scores)

    def check_same(self, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> None:
        """Asserts that two greedy outputs are equal up to a near-tie."""
        if list(one) != list(other):
            self.check_greedy(prompt, one)
            self.check_greedy(prompt, other)


def check_scores(verdict: Verdict, first: int, scores: Iterable[TokenLogprob]) -> None:
    """Asserts that the scores of positions `first`, `first + 1` ... agree with the oracle's."""
    for position, score in enumerate(scores, first):
        if position >= verdict.num_certain:
            return
        logprobs_V = verdict.logprobs_TV[position]
        ids = [score.token_id, *score.alternative_ids]
        given = torch.tensor([score.logprob, *score.alternative_logprobs])
        wrong = (given - logprobs_V[ids]).abs().max().item()
        assert wrong <= TOLERANCE, f"position {position}: a log-probability is off by {wrong}"


def _first_tie(gate_TE: Tensor, top_k: int) -> int:
    """The first position at which the last expert chosen and the first one left out are nearly equal."""
    if top_k == gate_TE.shape[-1]:
        return len(gate_TE)
    best = gate_TE.float().topk(top_k + 1, dim=-1).values
    ties = (best[:, -2] - best[:, -1] < TIE).nonzero()
    return int(ties[0]) if len(ties) else len(gate_TE)
