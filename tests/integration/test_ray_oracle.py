"""Models of other shapes over Ray and HTTP: tokens and log-probabilities, alternatives included, are transformers'."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from protos.generation_pb2 import TokenLogprob
from serving.logprobs import Names
from serving.tokenizer import TextCodec
from tests.integration.ray_fixtures import VOCABULARY
from tests.integration.ray_service import MODEL, RayService, running_service
from tests.integration.test_ray_api import prompts_of
from tests.oracle import TOLERANCE, Oracle
from tests.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.cluster

SIZES = {"hidden_size": 64, "ffn_size": 96, "vocab_size": VOCABULARY, "max_context": 512}
LENGTHS = (1, 30, 64, 65, 150, 200)
NUM_TOKENS = 24
NUM_TOP = 5


@pytest.mark.parametrize(
    ("name", "shape", "sections"),
    [
        pytest.param(
            "full",
            {"window": None, "num_heads": 4, "num_kv_heads": 4, "num_experts": 5, "top_k": 3},
            {"experts": {"per_actor": 2}},
            id="full attention, ungrouped heads, 5 experts of which 3",
        ),
        pytest.param(
            "window64",
            {"window": 64, "num_kv_heads": 1, "num_experts": 6, "top_k": 1, "fused_names": True, "tie": True},
            {"experts": {"per_actor": 6, "slices": 2}, "attention": {"prefill_chunk": 48}},
            id="window 64, one key head, 6 experts of which 1, fused names, tied",
            marks=pytest.mark.full,
        ),
    ],
)
def test_tokens_and_log_probabilities(
    ray_port: int, tmp_path: Path, seed: int, name: str, shape: dict[str, Any], sections: dict[str, Any]
) -> None:
    oracle = Oracle(make_checkpoint(tmp_path, seed=seed, **SIZES, **shape))
    prompts, ids = prompts_of(LENGTHS, seed), ids_by_name(tmp_path)
    with running_service(tmp_path, ray_port, name, **sections) as service, ThreadPoolExecutor(len(prompts)) as pool:
        choices = list(pool.map(lambda prompt: ask(service, prompt), prompts))
    for prompt, choice in zip(prompts, choices, strict=True):
        assert (len(choice.token_ids), choice.finish_reason) == (NUM_TOKENS, "length")
        check(oracle, prompt, choice.token_ids, [alternatives(top, ids) for top in choice.logprobs.top_logprobs])


def ids_by_name(directory: Path) -> dict[str, int]:
    """Every token's id by what the API calls it."""
    names = Names(TextCodec.load(directory).token_bytes)
    tokens = [json.loads(names.legacy(token_id)) for token_id in range(VOCABULARY)]
    assert len(set(tokens)) == VOCABULARY
    return {token: token_id for token_id, token in enumerate(tokens)}


def ask(service: RayService, prompt: Sequence[int]) -> Any:
    """The choice of one greedy completion."""
    extra = {"return_token_ids": True, "ignore_eos": True}
    client: Any = service.client()
    return client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=NUM_TOKENS, temperature=0, logprobs=NUM_TOP, extra_body=extra
    ).choices[0]


def alternatives(top: dict[str, float], ids: dict[str, int]) -> dict[int, float]:
    return {ids[token]: logprob for token, logprob in top.items()}


def check(oracle: Oracle, prompt: Sequence[int], output: Sequence[int], tops: Sequence[dict[int, float]]) -> None:
    """Each token is the best one, and its alternatives are the best ones with the right log-probabilities."""
    scores = [
        TokenLogprob(token_id=token_id, logprob=top[token_id], alternative_ids=top, alternative_logprobs=top.values())
        for token_id, top in zip(output, tops, strict=True)
    ]
    oracle.check_greedy(prompt, output, scores)
    verdict = oracle.verdict([*prompt, *output])
    for position, top in enumerate(tops, len(prompt) - 1):
        if position < verdict.num_certain:
            best = verdict.logprobs_TV[position].topk(NUM_TOP).values
            given = torch.tensor(sorted(top.values(), reverse=True))
            assert (given - best).abs().max() <= TOLERANCE, f"position {position}: {given} instead of {best}"
