"""What a node accepts, what it refuses and how it says so, and what a sequence starts with."""

from dataclasses import replace

import pytest

from attention.admission import SubmitError, make_sequence
from attention.sequence import Sequence
from model.routing import Routing
from protos.generation_pb2 import Sampling, Submit
from tests.attention.small_engine import CONFIG, EOS, VOCABULARY

CONTEXT = 20


def admit(prompt: list[int], output: list[int] | None = None, *, task: str = "", **sampling: object) -> Sequence:
    wanted = Submit(prompt_ids=prompt, output_ids=output or [], task=task, sampling=Sampling(**sampling))
    return make_sequence("key", wanted, CONFIG, CONTEXT, arrival_s=5.0)


@pytest.mark.parametrize(
    ("wanted", "code", "words"),
    [
        ({"prompt": []}, "invalid_request", "empty"),
        ({"prompt": [3, VOCABULARY]}, "invalid_request", f"token {VOCABULARY} .*allowed: 0 to {VOCABULARY - 1}"),
        ({"prompt": [3], "output": [4, 2**32 - 1]}, "invalid_request", "token 4294967295 .*allowed"),
        ({"prompt": [3], "task": "poetry"}, "invalid_request", "poetry"),
        ({"prompt": [3], "temperature": -1.0}, "invalid_request", "temperature"),
        ({"prompt": [3] * 21, "max_tokens": 0}, "context_length", "21 tokens.*fit 20"),
        ({"prompt": [3] * 20, "max_tokens": 1}, "context_length", "20 tokens.*fit 20"),
        ({"prompt": [3] * 20}, "context_length", "20 tokens.*fit 20"),  # max_tokens unset is not 0
        ({"prompt": [3] * 18, "output": [4] * 3}, "context_length", "18 tokens and 3 outputs.*fit 20"),
    ],
)
def test_refused(wanted: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(SubmitError, match=words) as refused:
        admit(**wanted)
    assert refused.value.code == code
    assert refused.value.message == str(refused.value)


def test_why_it_is_refused_is_short_whatever_was_sent() -> None:
    """Written out, such a name is longer than a frame may be: telling it would end the node."""
    with pytest.raises(SubmitError, match="^task ") as refused:
        admit([3], task="\x01" * (5 << 20))
    assert len(refused.value.message) == len(str(refused.value)) == 2004


def test_a_task_is_one_of_the_models() -> None:
    by_task = replace(CONFIG, routing=Routing("task", tasks=("python", "prose")))

    def task_of(task: str) -> int:
        return make_sequence("key", Submit(prompt_ids=[3], task=task), by_task, CONTEXT, arrival_s=0.0).task

    assert [task_of("python"), task_of("prose")] == [0, 1]
    for task, words in (("", "no task was given"), ("poetry", "'poetry' is none of the model's")):
        with pytest.raises(SubmitError, match=f"{words}.*allowed: python, prose") as refused:
            task_of(task)
        assert refused.value.code == "invalid_request"


def test_prompt_and_output_stay_apart() -> None:
    sequence = admit([3, 4], [5, 6, 7], max_tokens=8)
    assert sequence.ids == [3, 4, 5, 6, 7]
    assert (sequence.num_prompt, sequence.num_output, sequence.output_ids) == (2, 3, [5, 6, 7])
    assert (sequence.num_pending, sequence.num_cached, sequence.arrival_s) == (5, 0, 5.0)
    assert sequence.max_output == 8, "max_tokens counts the outputs that it resumes with"


@pytest.mark.parametrize(("max_tokens", "allowed"), [(None, 17), (5, 5), (17, 17), (100, 17), (0, 0)])
def test_output_ends_with_the_context(max_tokens: int | None, allowed: int) -> None:
    assert admit([3] * 3, max_tokens=max_tokens).max_output == allowed


@pytest.mark.parametrize("window", [None, CONTEXT + 1, CONTEXT, 4])
def test_what_was_accepted_under_a_higher_limit_goes_on_where_the_cache_rolls(window: int | None) -> None:
    """The limit was lowered while it ran. With a cache as long as the context, it would lose what it must see."""
    config = replace(CONFIG, window=window, max_context=30)
    wanted = Submit(prompt_ids=[3] * 18, output_ids=[4] * 7, sampling=Sampling(max_tokens=10), resumed=True)
    if window is None or window > CONTEXT:
        with pytest.raises(SubmitError, match="18 tokens and 7 outputs.*fit 20"):
            make_sequence("key", wanted, config, CONTEXT, arrival_s=0.0)
    else:
        assert make_sequence("key", wanted, config, CONTEXT, arrival_s=0.0).max_output == 10
    wanted.resumed = False
    with pytest.raises(SubmitError, match="fit 20"):
        make_sequence("key", wanted, config, CONTEXT, arrival_s=0.0)


def test_a_prompt_that_fills_the_context_can_be_scored() -> None:
    assert admit([3] * CONTEXT, max_tokens=0).max_output == 0


def test_stop_rules() -> None:
    assert admit([3]).stop_ids == {EOS}
    assert admit([3], stop_token_ids=[7, 8]).stop_ids == {EOS, 7, 8}
    assert admit([3], stop_token_ids=[7], ignore_eos=True).stop_ids == {7}
    several = replace(CONFIG, eos_token_ids=(1, 2))
    submit = Submit(prompt_ids=[3])
    assert make_sequence("key", submit, several, CONTEXT, arrival_s=0.0).stop_ids == {1, 2}
