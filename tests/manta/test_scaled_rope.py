"""Whole models whose rotary embedding is scaled: greedy tokens and scores are transformers', in chunks and resumed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from attention.admission import SubmitError
from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import spec_for_model
from manta.local import LocalModel, LocalSettings
from protos.generation_pb2 import Sampling, Submit
from tests.local_driver import Wish, run
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint

ORIGINAL, CONTEXT = 16, 256
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 16.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}
SIZES = {"hidden_size": 32, "ffn_size": 48, "num_experts": 4, "head_dim": 16, "max_context": CONTEXT}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_and_scores_are_those_of_transformers(tmp_path: Path, kind: str, seed: int) -> None:
    rope = {"rope_type": kind, "rope_theta": 100.0} | KINDS[kind]  # a small base: every frequency matters
    oracle = Oracle(make_checkpoint(tmp_path, rope=rope, seed=seed, **SIZES))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == kind
    draws = random.Random(seed)
    prompt = [draws.randrange(3, 320) for _ in range(200)]
    sampling = Sampling(max_tokens=40, ignore_eos=True, logprobs=3, prompt_logprobs=1)
    settings = LocalSettings(prefill_chunk=48, cache_tokens=2 * CONTEXT)
    (whole,) = run(LocalModel(tmp_path, settings), [Wish(prompt, sampling)])
    oracle.check_greedy(prompt, whole.tokens, whole.scores)
    (resumed,) = run(LocalModel(tmp_path, settings), [Wish(prompt, sampling, output=whole.tokens[:20])])
    oracle.check_same(prompt, whole.tokens, whole.tokens[:20] + resumed.tokens)


def test_a_context_beyond_the_trained_one_is_refused(tmp_path: Path, seed: int) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    make_checkpoint(tmp_path, rope=rope, seed=seed, **SIZES)
    with pytest.raises(SubmitError, match=f"must fit {CONTEXT}"):
        LocalModel(tmp_path).submit(Submit(prompt_ids=[5] * (CONTEXT + 1), sampling=Sampling(max_tokens=1)))
    spec = spec_for_model(str(tmp_path), {"model.max_context": CONTEXT + 1})
    with pytest.raises(ValueError, match=r"257 was given.*256 at most.*dynamic.*length so far"):
        resolve(spec, Room((2.0,), own=True))
