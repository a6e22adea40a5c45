"""transformers' MixtralForCausalLM as the oracle for what a model in fp32 should have said.

One pass over prompt and output judges every position: greedy output is right when each token is the best one after all
that precede it. Where two experts' gate logits, or two tokens' logits, are closer than float32 can tell apart, both
answers are right; such near-ties are rare, and nothing else is excused. T positions, V vocabulary, E experts.

A near-tie between experts excuses all that follows it in its sequence. A test of which less than half has been judged
fails (`enough_is_judged` in conftest.py). In the models that tests use about one position in 50,000 has a near-tie: it
takes two in one test of several sequences, which one in some 100,000 has, but one in 500 tests of a single sequence of
100 tokens. Those take a `certain_prompt` where they can.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import MixtralForCausalLM

from protos.generation_pb2 import TokenLogprob

TIE = 1e-5
TOLERANCE = 1e-4


@dataclass
class Tally:
    """How many tokens all oracles were asked about, and how many they have judged: the others are excused."""

    num_asked: int = 0
    num_judged: int = 0


tally = Tally()


@dataclass(frozen=True)
class Verdict:
    """The oracle's logits of every position, and how many of them no near-tie between experts has touched."""

    logits_TV: Tensor
    num_certain: int

    @property
    def logprobs_TV(self) -> Tensor:
        return self.logits_TV.log_softmax(-1)

    def num_judged(self, first: int, count: int) -> int:
        """How many of the positions `first`, `first + 1` ... are before the first near-tie; counts them."""
        judged = max(0, min(count, self.num_certain - first))
        tally.num_asked += count
        tally.num_judged += judged
        return judged


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
        first = len(prompt) - 1
        for index, token_id in enumerate(output[: verdict.num_judged(first, len(output))]):
            logits_V = verdict.logits_TV[first + index]
            missing = (logits_V.max() - logits_V[token_id]).item()
            assert missing <= TIE, f"output {index} is {token_id}; {int(logits_V.argmax())} is better by {missing}"
        if scores:
            assert len(scores) == len(output)
            check_scores(verdict, first, scores)

    def certain_prompt(self, draw: Callable[[], list[int]], num_tokens: int) -> list[int]:
        """Draws prompts until no near-tie touches one or its greedy output of so many tokens: all of that is judged."""
        for _ in range(50):
            prompt = draw()
            ids = list(prompt)
            for _ in range(num_tokens):
                ids.append(int(self.verdict(ids).logits_TV[-1].argmax()))
            if self.verdict(ids).num_certain == len(ids):
                return prompt
        raise AssertionError("50 prompts all had a near-tie")

    def check_same(self, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]) -> None:
        """Asserts that two greedy outputs are equal up to a near-tie."""
        if list(one) != list(other):
            self.check_greedy(prompt, one)
            self.check_greedy(prompt, other)


def check_scores(verdict: Verdict, first: int, scores: Sequence[TokenLogprob]) -> None:
    """Asserts that the scores of positions `first`, `first + 1` ... agree with the oracle's."""
    for position, score in enumerate(scores[: verdict.num_judged(first, len(scores))], first):
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
