"""Routing by sentence and by task over real sockets gives what one process gives, also after the loss of a router."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from attention.sizing import NodeSettings
from manta.local import LocalModel
from protos.generation_pb2 import FAILED, Sampling
from tests.attention.node_setup import TIMEOUT_S, start_node
from tests.local_driver import Wish, run
from tests.routed_checkpoint import make_sentence_checkpoint, make_task_checkpoint

SMALL = {"hidden_size": 32, "ffn_size": 48, "vocab_size": 97, "window": 16, "with_tokenizer": False}
SETTINGS = NodeSettings(16, 4096, None, prefill_chunk=None, max_batch_tokens=64, max_sequences=4, max_queued=9)
TASKS = ("one", "other")


@pytest.mark.parametrize(
    ("make", "tasks"),
    [
        (lambda path: make_sentence_checkpoint(path, 10, seed=5, **SMALL), ("",)),
        (lambda path: make_task_checkpoint(path, TASKS, seed=5, **SMALL), TASKS),
    ],
)
def test_a_node_routes_as_one_process_does(
    tmp_path: Path, seed: int, make: Callable[[Path], object], tasks: tuple[str, ...]
) -> None:
    make(tmp_path)
    rng = random.Random(seed)
    sampling = Sampling(max_tokens=20, ignore_eos=True, temperature=1.0, seed=seed)
    prompts = [[rng.randrange(97) for _ in range(length)] for length in (1, 8, 10, 40, 23)]
    wishes = [Wish(prompt, sampling, task=tasks[n % len(tasks)]) for n, prompt in enumerate(prompts)]
    expected = [outcome.tokens for outcome in run(LocalModel(tmp_path), wishes)]
    with start_node(tmp_path, SETTINGS) as setup, setup.router() as first:
        setup.announce(first)
        assert setup.node.wait_ready(TIMEOUT_S)
        gateway = setup.gateway()
        for number, wish in enumerate(wishes):
            gateway.submit(number, wish.prompt, **options(wish))
        gateway.wait(lambda: len(gateway.tokens(0)) > 3)
        with setup.router() as second:
            setup.announce(second)  # the first one's calls are made again of the second
            assert [list(output.token_ids) for output in gateway.finish(*range(len(wishes)))] == expected
            for number, wish in enumerate(wishes):  # and at a node that has never seen the sequence
                gateway.submit(100 + number, wish.prompt, expected[number][:7], **options(wish))
            resumed = gateway.finish(*range(100, 100 + len(wishes)))
            assert [list(output.token_ids) for output in resumed] == [tokens[7:] for tokens in expected]
            gateway.submit(999, [5], task="poetry")
            (refused,) = gateway.finish(999)
            assert (refused.finish_reason, refused.failure.code) == (FAILED, "invalid_request")
            assert "poetry" in refused.failure.message


def options(wish: Wish) -> dict[str, object]:
    return {"task": wish.task, **{field.name: value for field, value in wish.sampling.ListFields()}}
