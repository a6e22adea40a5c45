"""What single requests ask of the engine beyond the usual: scores of prompts, bad words, priority."""

import pytest

from attention.admission import SubmitError
from attention.scheduler import SchedulerLimits
from protos.generation_pb2 import FAILED, Sampling, Submit
from tests.attention.small_engine import EOS, bad_words, finish, make_engine, outputs_of, step, submit

PROMPT = [5, 6, 7]


def test_prompt_scores_have_alternatives_of_their_own(seed: int) -> None:
    engine = make_engine(seed)
    asked = {"prompt_logprobs": True, "max_tokens": 2, "temperature": 0.0, "ignore_eos": True}
    submit(engine, 0, PROMPT, prompt_alternatives=3, **asked)
    submit(engine, 1, PROMPT, logprobs=1, prompt_alternatives=3, **asked)
    outputs = finish(engine)
    assert [len(each.alternative_ids) for each in outputs[0].prompt_logprobs] == [3] * (len(PROMPT) - 1)
    assert list(outputs[0].prompt_logprobs) == list(outputs[1].prompt_logprobs)
    assert not outputs[0].logprobs
    assert [len(each.alternative_ids) for each in outputs[1].logprobs] == [1, 1]


def test_bad_words_go_on_at_another_node(seed: int) -> None:
    plain = outputs_of(seed, PROMPT, max_tokens=6, ignore_eos=True)
    word = plain[2:4]
    first = next(index for index in range(6) if plain[index : index + 2] == word)
    wanted = outputs_of(seed, PROMPT, max_tokens=6, ignore_eos=True, **bad_words(word))
    assert wanted[: first + 1] == plain[: first + 1]
    assert word not in [wanted[index : index + 2] for index in range(6)]
    engine = make_engine(seed)
    sampling = Sampling(max_tokens=6, ignore_eos=True, **bad_words(word))
    output_ids = wanted[: first + 1]
    engine.submit(0, Submit(prompt_ids=PROMPT, output_ids=output_ids, sampling=sampling, resumed=True))
    assert list(finish(engine)[0].token_ids) == wanted[first + 1 :]


def test_a_request_that_leaves_no_token_ends_with_its_own_fault(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, PROMPT, allowed_token_ids=[7], max_tokens=4, **bad_words([7, 7]))
    submit(engine, 1, PROMPT, max_tokens=4, ignore_eos=True)
    outputs = finish(engine)
    assert list(outputs[0].token_ids) == [7]
    assert (outputs[0].finish_reason, outputs[0].failure.code) == (FAILED, "invalid_request")
    assert len(outputs[1].token_ids) == 4
    with pytest.raises(SubmitError, match="leave no token"):
        submit(engine, 2, PROMPT, allowed_token_ids=[EOS], min_tokens=1, max_tokens=4)


def test_priority_is_that_of_the_request(seed: int) -> None:
    engine = make_engine(seed, limits=SchedulerLimits(8, 32, 1, 3))
    for key, priority in ((0, 3), (1, 2), (2, -1)):
        sampling = Sampling(max_tokens=1)
        engine.submit(key, Submit(prompt_ids=PROMPT, sampling=sampling, priority=priority))
    assert [next(iter(step(engine))) for _ in range(3)] == [2, 1, 0]
