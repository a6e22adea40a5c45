"""What transformers answers, as the reference of the benchmarks of faults."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults.compare import differences
from benchmarks.faults.theirs import NoReference, transformers_answers
from tests.oracle import Oracle
from tests.random_checkpoint import make_checkpoint

PROMPTS = (([5, 6, 7], [8, 9, 10]), ([11, 12, 13], [14, 15, 16]))
NUM_TOKENS = 6


def test_answers_and_margins_are_those_of_the_model(tmp_path: Path, seed: int) -> None:
    oracle = Oracle(make_checkpoint(tmp_path, seed=seed, hidden_size=32, ffn_size=48))
    theirs = transformers_answers(tmp_path, PROMPTS, NUM_TOKENS)
    assert [answer.key for answer in theirs.answers] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for answer in theirs.answers:
        prompt = PROMPTS[answer.key[0]][answer.key[1]]
        assert len(answer.token_ids) == len(answer.margins) == NUM_TOKENS
        oracle.check_greedy(prompt, answer.token_ids)
        logits_TV = oracle.verdict([*prompt, *answer.token_ids]).logits_TV[len(prompt) - 1 : -1]
        best_T2 = logits_TV.topk(2, dim=-1).values
        assert answer.margins == pytest.approx((best_T2[:, 0] - best_T2[:, 1]).tolist(), abs=1e-4)


def test_another_answer_than_theirs_differs(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path, seed=seed, hidden_size=32, ffn_size=48)
    answers = transformers_answers(tmp_path, PROMPTS, NUM_TOKENS).answers
    expected = {answer.key: answer for answer in answers}
    assert differences(expected, answers, lambda key, ids: 0.0) == []
    wrong = replace(answers[2], token_ids=(*answers[2].token_ids[:-1], (answers[2].token_ids[-1] + 1) % 320))
    (found,) = differences(expected, [answers[0], wrong], lambda key, ids: 1.0)
    assert (found.key, found.position) == ((1, 0), NUM_TOKENS - 1)
    assert found.excuse is None or (found.token_margin or 0.0) <= 1e-5


def test_a_checkpoint_that_transformers_would_route_otherwise_has_no_reference(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=1, hidden_size=32, ffn_size=48)
    path = tmp_path / "config.json"
    routing = {"level": "sentence", "positions": 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"manta_routing": routing}))
    with pytest.raises(NoReference, match="it routes by sentence"):
        transformers_answers(tmp_path, PROMPTS, NUM_TOKENS)
