"""What a gateway keeps of a sequence so that another node can go on with it."""

from types import SimpleNamespace
from typing import Any

import pytest

from protos.generation_pb2 import LENGTH, Sampling, SequenceOutput, Submit, TokenLogprob
from serving.generator import GenerationError
from serving.nodes import Progress
from transport.tries import MAX_DEATHS, MAX_TRIES


def node(usable: bool = False) -> Any:
    """An attention node, of which only this is asked."""
    return SimpleNamespace(usable=usable)


def scores(*token_ids: int) -> SequenceOutput:
    return SequenceOutput(prompt_logprobs=[TokenLogprob(token_id=token_id) for token_id in token_ids])


def test_prompt_scores_of_several_messages_come_with_the_first_token() -> None:
    progress = Progress(Submit(prompt_ids=[1, 2, 3, 4], sampling=Sampling(prompt_logprobs=True)))
    assert not progress.take(scores(2, 3))
    first = scores(4)
    first.token_ids.append(9)
    assert progress.take(first)
    assert [score.token_id for score in first.prompt_logprobs] == [2, 3, 4]


def test_a_resume_asks_for_what_is_left() -> None:
    submit = Submit(prompt_ids=[1, 2], sampling=Sampling(prompt_logprobs=True, max_tokens=4), task="prose", priority=-7)
    progress = Progress(submit)
    progress.take(scores(2))
    assert not progress.request().resumed
    progress.node_lost(node(), left=False)
    assert progress.request().resumed
    assert progress.request().sampling.prompt_logprobs, "nothing has been handed on yet"
    again = scores(2)
    again.token_ids.extend([7, 8])
    progress.take(again)
    assert [score.token_id for score in again.prompt_logprobs] == [2], "the lost node's scores are not repeated"
    request = progress.request()
    assert list(request.output_ids) == [7, 8]
    assert request.task == "prose"
    assert request.priority == -7
    assert not request.sampling.prompt_logprobs
    assert submit.sampling.prompt_logprobs, "the caller's message is left alone"


def test_a_sequence_that_takes_every_node_down_is_given_up() -> None:
    progress = Progress(Submit(prompt_ids=[1]))
    for _ in range(MAX_DEATHS - 1):
        progress.node_lost(node(), left=False)
    progress.take(SequenceOutput(token_ids=[5]))  # a token: the count starts again
    assert progress.request().resumed
    for _ in range(MAX_DEATHS - 1):
        progress.node_lost(node(), left=False)
    with pytest.raises(GenerationError, match="lost one after the other"):
        progress.node_lost(node(), left=False)


def test_a_node_whose_link_fails_and_comes_back_has_not_died() -> None:
    progress, first, second = Progress(Submit(prompt_ids=[1])), node(usable=True), node(usable=True)
    for number in range(MAX_TRIES - 1):
        progress.node_lost((first, second)[number % 2], left=False)
    with pytest.raises(GenerationError, match="16 attention nodes were lost"):
        progress.node_lost(first, left=False)


def test_a_sequence_that_hangs_every_node_is_given_up() -> None:
    """They are dropped from the table, as those that leave are: only so many of them are believed to leave."""
    progress = Progress(Submit(prompt_ids=[1]))
    for _ in range(MAX_TRIES - 1):
        progress.node_lost(node(), left=True)
    with pytest.raises(GenerationError, match="16 attention nodes were lost"):
        progress.node_lost(node(), left=True)


def test_an_end_without_tokens_is_handed_on() -> None:
    progress = Progress(Submit(prompt_ids=[1]))
    assert progress.take(SequenceOutput(finish_reason=LENGTH))
