"""Routing by sentence and by task over Ray and HTTP, also when the only attention node dies in the middle of it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from protos.generation_pb2 import TokenLogprob
from tests.integration.ray_fixtures import LAYOUT, VOCABULARY
from tests.integration.ray_service import (
    MODEL,
    Answer,
    RayService,
    complete,
    complete_streaming,
    kill,
    running_service,
)
from tests.integration.test_ray_api import prompts_of
from tests.oracle import Oracle
from tests.routed_checkpoint import make_sentence_checkpoint, make_task_checkpoint

pytestmark = pytest.mark.cluster

POSITIONS = 20
NUM_TOKENS = 30
TASKS = ("python", "prose")


def check(oracle: Oracle, prompt: Sequence[int], answer: Answer) -> None:
    assert (len(answer.token_ids), answer.finish_reason) == (NUM_TOKENS, "length")
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    scores = [TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in pairs]
    oracle.check_greedy(prompt, answer.token_ids, scores)


def killing_the_node(service: RayService, at_token: int) -> Callable[[int], None]:
    def on_token(number: int) -> None:
        if number == at_token:
            (pid,) = service.pids("attention_nodes")
            kill(pid)

    return on_token


def test_sentences(ray_port: int, tmp_path: Path, seed: int) -> None:
    """The node dies before the positions that decide have come: the next one decides by prompt and output."""
    oracle = Oracle(make_sentence_checkpoint(tmp_path, POSITIONS, seed=seed, vocab_size=VOCABULARY, **LAYOUT))
    prompts = prompts_of((1, 9, POSITIONS, 70), seed)
    sections = {"attention": {"prefill_chunk": 7}, "router": {"replicas": 2, "routing": "sentence"}}
    with running_service(tmp_path, ray_port, "sentence", **sections) as service:
        client = service.client()
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(lambda prompt: complete(client, prompt, NUM_TOKENS), prompts))
        for prompt, answer in zip(prompts, answers, strict=True):
            check(oracle, prompt, answer)
        moved = complete_streaming(client, prompts[1], NUM_TOKENS, killing_the_node(service, 5))
        check(oracle, prompts[1], moved)
        with pytest.raises(openai.BadRequestError, match="does not route by task"):
            complete(client, prompts[0], 1, extra_body={"task": "python"})


def test_tasks(ray_port: int, tmp_path: Path, seed: int) -> None:
    model = make_task_checkpoint(tmp_path, TASKS, seed=seed, vocab_size=VOCABULARY, **LAYOUT)
    prompts = prompts_of((5, 40), seed)
    asked = [(prompt, task) for prompt in prompts for task in TASKS]
    with running_service(tmp_path, ray_port, "task") as service:
        client = service.client()

        def ask(one: tuple[list[int], str]) -> Answer:
            return complete(client, one[0], NUM_TOKENS, extra_body={"task": one[1]})

        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(ask, asked))
        for (prompt, task), answer in zip(asked, answers, strict=True):
            check(model.oracle(task), prompt, answer)
        dying = killing_the_node(service, 5)
        moved = complete_streaming(client, prompts[1], NUM_TOKENS, dying, extra_body={"task": "prose"})
        check(model.oracle("prose"), prompts[1], moved)
        with pytest.raises(openai.BadRequestError, match="it is missing; allowed: python, prose"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
