"""The margins of gates agree with what transformers computes in float64."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.faults.exact import ExactModel, smallest_gap
from tests.random_checkpoint import make_checkpoint

VOCABULARY = 97
SMALL = {"hidden_size": 32, "ffn_size": 48, "vocab_size": VOCABULARY, "with_tokenizer": False}


@pytest.mark.parametrize("num_tokens", [1, 40, 700])  # within the window, beyond it, more than one step of the engine
def test_the_smallest_margin_is_that_of_transformers(tmp_path: Path, seed: int, num_tokens: int) -> None:
    # transformers keeps norms and angles in float32 even so; still closer by far than what counts as a tie
    model = make_checkpoint(tmp_path, seed=seed, window=16, **SMALL).double()
    exact = ExactModel(tmp_path, max_context=700)
    rng = random.Random(seed)
    for _ in range(2):  # the second finds nothing left of the first
        ids = [rng.randrange(VOCABULARY) for _ in range(num_tokens)]
        with torch.inference_mode():
            layers = model(torch.tensor([ids]), output_router_logits=True).router_logits
        expected = min(smallest_gap(logits_TE, 2) for logits_TE in layers)
        assert exact.gate_margin(ids) == pytest.approx(expected, abs=2e-6)


def test_the_smallest_gap_is_between_the_last_chosen_and_the_next() -> None:
    logits_TE = torch.tensor([[1.0, 5.0, 3.0, 3.5], [9.0, 8.75, 0.0, 8.0]])
    assert smallest_gap(logits_TE, 2) == 0.5
    assert smallest_gap(logits_TE, 1) == 0.25
    assert smallest_gap(logits_TE, 4) == float("inf")
