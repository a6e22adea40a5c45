"""The engine's rules: when a sequence ends and why, what it is told, and who is hurt when something fails."""

import pytest
import torch
from torch import Tensor

from attention.admission import SubmitError
from attention.scheduler import SchedulerLimits
from protos.generation_pb2 import FAILED, LENGTH, STOP, Sampling, Submit
from tests.attention.small_engine import (
    CONFIG,
    EOS,
    MAX_CONTEXT,
    VOCABULARY,
    finish,
    make_engine,
    mild_experts,
    outputs_of,
    random_weights,
    step,
    submit,
)
from transport.base import DegradedRows
from transport.errors import CallError

ALWAYS_EOS = {EOS: 100.0}


def test_end_of_sequence_stops(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5, 6], logit_bias=ALWAYS_EOS)
    output = finish(engine)[0]
    assert list(output.token_ids) == [EOS]
    assert (output.finish_reason, output.stop_token_id) == (STOP, EOS)


def test_ignore_eos_goes_on(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5, 6], logit_bias=ALWAYS_EOS, ignore_eos=True, max_tokens=4)
    output = finish(engine)[0]
    assert list(output.token_ids) == [EOS] * 4
    assert output.finish_reason == LENGTH
    assert not output.HasField("stop_token_id")


def test_min_tokens_hold_back_every_stop_token(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5, 6], logit_bias={EOS: 100.0, 9: 90.0}, stop_token_ids=[9], min_tokens=3)
    output = finish(engine)[0]
    assert len(output.token_ids) == 4
    assert not {EOS, 9} & set(output.token_ids[:3])
    assert (output.token_ids[3], output.stop_token_id) == (EOS, EOS)


def test_stop_token_ids(seed: int) -> None:
    free = outputs_of(seed, [5, 6], ignore_eos=True, max_tokens=12)
    stop = free[5]
    engine = make_engine(seed)
    submit(engine, 0, [5, 6], ignore_eos=True, max_tokens=12, stop_token_ids=[stop])
    output = finish(engine)[0]
    assert list(output.token_ids) == free[: free.index(stop) + 1]
    assert (output.finish_reason, output.stop_token_id) == (STOP, stop)


def test_a_stop_token_as_the_last_one_allowed_is_a_stop(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5, 6], logit_bias=ALWAYS_EOS, max_tokens=1)
    assert finish(engine)[0].finish_reason == STOP


def test_scoring_a_prompt_without_generating(seed: int) -> None:
    engine = make_engine(seed)
    prompt = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]  # two chunks
    submit(engine, 0, prompt, max_tokens=0, prompt_logprobs=True, logprobs=2)
    output = finish(engine)[0]
    assert output.finish_reason == LENGTH
    assert not output.token_ids
    assert not output.logprobs
    assert [score.token_id for score in output.prompt_logprobs] == prompt[1:]
    assert all(len(score.alternative_ids) == 2 for score in output.prompt_logprobs)


def test_prompt_scores_come_once_and_with_the_first_token(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, list(range(2, 20)), max_tokens=3, prompt_logprobs=True, logprobs=0, ignore_eos=True)
    outputs = []
    while engine.has_work:
        outputs.extend(step(engine).values())
    assert [len(output.prompt_logprobs) for output in outputs] == [17, 0, 0]
    assert [len(output.logprobs) for output in outputs] == [1, 1, 1]


def test_prompt_scores_of_a_sequence_preempted_in_its_prompt(seed: int) -> None:
    """It begins again, and so do its scores."""
    prompt, asked = list(range(2, 30)), {"max_tokens": 1, "prompt_logprobs": True, "logprobs": 0, "ignore_eos": True}
    alone = make_engine(seed)
    submit(alone, 1, prompt, **asked)
    expected = finish(alone)[1].prompt_logprobs
    engine = make_engine(seed, num_blocks=11, limits=SchedulerLimits(1, 32, 4, 3))
    submit(engine, 0, [5, 6, 7], max_tokens=40, ignore_eos=True)  # grows by a block every four steps
    submit(engine, 1, prompt, **asked)  # 28 tokens, one a step
    scores = finish(engine)[1].prompt_logprobs
    assert engine.scheduler.num_preemptions
    assert [score.token_id for score in scores] == prompt[1:]
    assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in expected], abs=1e-4)


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_the_context_limits_the_output(seed: int, max_tokens: int | None) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5] * (MAX_CONTEXT - 3), max_tokens=max_tokens, ignore_eos=True)
    output = finish(engine)[0]
    assert len(output.token_ids) == 3
    assert output.finish_reason == LENGTH


def test_a_prompt_as_long_as_the_context_can_be_scored(seed: int) -> None:
    engine = make_engine(seed)
    submit(engine, 0, [5] * MAX_CONTEXT, max_tokens=0, prompt_logprobs=True)
    assert len(finish(engine)[0].prompt_logprobs) == MAX_CONTEXT - 1


def test_full_queue(seed: int) -> None:
    engine = make_engine(seed, limits=SchedulerLimits(8, 32, max_sequences=2, max_queued=3))
    for key in range(5):  # two find a free lane at once
        submit(engine, key, [5, 6], max_tokens=2, ignore_eos=True)
    with pytest.raises(SubmitError, match="max_queued") as refused:
        submit(engine, 5, [5, 6], max_tokens=2)
    assert refused.value.code == "queue_full"
    step(engine)
    with pytest.raises(SubmitError, match="max_queued"):  # two run, three wait
        submit(engine, 5, [5, 6], max_tokens=2)
    step(engine)
    submit(engine, 5, [5, 6], max_tokens=2)  # two have ended
    assert finish(engine).keys() == {2, 3, 4, 5}


@pytest.mark.parametrize("output", [[], [7]])
def test_a_full_queue_takes_what_was_at_a_node_that_was_lost(seed: int, output: list[int]) -> None:
    engine = make_engine(seed, limits=SchedulerLimits(8, 32, max_sequences=1, max_queued=0))
    submit(engine, 0, [5, 6], max_tokens=2, ignore_eos=True)
    sampling = Sampling(max_tokens=2, ignore_eos=True)
    resumed = Submit(prompt_ids=[5, 6], output_ids=output, sampling=sampling, resumed=True)
    engine.submit(1, resumed)
    resumed.resumed = False
    with pytest.raises(SubmitError, match="max_queued"):
        engine.submit(2, resumed)
    assert finish(engine).keys() == {0, 1}


def test_a_refused_sequence_leaves_nothing_behind(seed: int) -> None:
    engine = make_engine(seed)
    with pytest.raises(SubmitError):
        submit(engine, 0, [VOCABULARY])
    assert not engine.has_work
    submit(engine, 0, [5], max_tokens=1)
    with pytest.raises(SubmitError, match="running already"):
        submit(engine, 0, [5], max_tokens=1)
    finish(engine)
    submit(engine, 0, [5], max_tokens=1)
    assert finish(engine).keys() == {0}


class FailingExperts:
    """Fails the calls whose numbers it is given."""

    def __init__(self, *calls: int) -> None:
        self._failing = calls
        self.num_calls = 0

    def __call__(self, layer: int, rows_TD: Tensor) -> Tensor:
        self.num_calls += 1
        if self.num_calls in self._failing:
            raise CallError("expert_unavailable", "expert 3 has no replica")
        return mild_experts(layer, rows_TD)


@pytest.mark.parametrize("failing_call", [3, 4])  # step 2, in its first and in its second layer
def test_a_failure_of_the_experts_ends_the_sequences_of_that_step(seed: int, failing_call: int) -> None:
    engine = make_engine(seed, experts=FailingExperts(failing_call), limits=SchedulerLimits(8, 32, 2, 3))
    submit(engine, 0, [5, 6], max_tokens=5, ignore_eos=True)
    submit(engine, 1, list(range(20)), max_tokens=5, ignore_eos=True)
    submit(engine, 2, [8, 9, 10], max_tokens=5, ignore_eos=True)  # waits for a lane
    assert step(engine).keys() == {0}
    failed = step(engine)
    assert failed.keys() == {0, 1}
    for output in failed.values():
        assert output.finish_reason == FAILED
        assert output.failure.code == "expert_unavailable"
        assert "expert 3" in output.failure.message
    engine.check_integrity()
    submit(engine, 3, [5, 6], max_tokens=5, ignore_eos=True)
    later = finish(engine)
    assert list(later[2].token_ids) == outputs_of(seed, [8, 9, 10], max_tokens=5, ignore_eos=True)
    assert list(later[3].token_ids) == outputs_of(seed, [5, 6], max_tokens=5, ignore_eos=True)


def test_nan_ends_only_its_own_sequence(seed: int) -> None:
    """Token 49 is poisoned: whoever reads it gets NaN. The cache blocks it leaves behind hurt nobody either."""
    weights = random_weights(seed)
    weights.embedding_VD[49] = float("nan")
    never_49 = {"max_tokens": 8, "ignore_eos": True, "logit_bias": {49: -100.0}}
    expected = [outputs_of(seed, prompt, **never_49) for prompt in ([5, 6, 7], list(range(10)))]
    engine = make_engine(seed, weights=weights, num_blocks=16)
    submit(engine, 0, [5, 6, 7], **never_49)
    submit(engine, 1, [5, 49, 7, 8, 9, 10, 11, 12, 13], **never_49)
    submit(engine, 2, list(range(10)), **never_49)
    outputs = finish(engine)
    assert outputs[1].finish_reason == FAILED
    assert outputs[1].failure.code == "internal"
    assert "NaN" in outputs[1].failure.message
    assert [list(outputs[0].token_ids), list(outputs[2].token_ids)] == expected
    for key in range(3, 6):  # every block is used again
        submit(engine, key, list(range(10)), **never_49)
        assert list(finish(engine)[key].token_ids) == expected[1]


def test_nan_while_decoding_and_in_scored_prompts(seed: int) -> None:
    weights = random_weights(seed)
    weights.embedding_VD[49] = float("nan")
    engine = make_engine(seed, weights=weights)
    submit(engine, 0, [5, 6], ignore_eos=True, max_tokens=8, logit_bias={49: 100.0})  # draws 49, then reads it
    submit(engine, 1, [5, 49, 6], ignore_eos=True, max_tokens=8, prompt_logprobs=True, logprobs=3)
    outputs = finish(engine)
    assert list(outputs[0].token_ids) == [49]
    assert outputs[0].finish_reason == outputs[1].finish_reason == FAILED


class CancellingExperts:
    """Cancels a sequence while its step waits for the experts, as a lost gateway does."""

    def __init__(self) -> None:
        self.cancel = lambda: None

    def __call__(self, layer: int, rows_TD: Tensor) -> Tensor:
        if layer == CONFIG.num_layers - 1:
            self.cancel()
        return mild_experts(layer, rows_TD)


@pytest.mark.parametrize(("max_tokens", "steps_before"), [(1, 0), (5, 0), (5, 1), (5, 3), (5, 4)])
def test_cancelled_in_the_middle_of_a_step(seed: int, max_tokens: int, steps_before: int) -> None:
    experts = CancellingExperts()
    engine = make_engine(seed, experts=experts)
    for key in (0, 1):
        submit(engine, key, [5, 6, key + 7], max_tokens=max_tokens, ignore_eos=True)
    for _ in range(steps_before):
        assert step(engine).keys() == {0, 1}
    experts.cancel = lambda: engine.cancel(0)
    assert step(engine).keys() == {1}
    engine.check_integrity()
    experts.cancel = lambda: None
    submit(engine, 0, [5, 6, 7], max_tokens=2, ignore_eos=True)  # its key is free
    outputs = finish(engine)
    assert list(outputs[0].token_ids) == outputs_of(seed, [5, 6, 7], max_tokens=2, ignore_eos=True)


def test_what_is_cancelled_in_the_last_step_is_still_work(seed: int) -> None:
    """Otherwise a node would wait for its next message before it freed the cache."""
    experts = CancellingExperts()
    engine = make_engine(seed, experts=experts)
    submit(engine, 0, [5, 6], ignore_eos=True)
    experts.cancel = lambda: engine.cancel(0)
    assert not step(engine)
    assert engine.has_work
    assert not step(engine)
    assert not engine.has_work
    assert not engine.scheduler.running


def test_cancelled_and_failed_in_one_step(seed: int) -> None:
    def failing(layer: int, rows_TD: Tensor) -> Tensor:
        engine.cancel(0)
        raise CallError("expert_unavailable", "gone")

    engine = make_engine(seed, experts=failing)
    for key in (0, 1):
        submit(engine, key, [5, 6], max_tokens=2)
    assert step(engine).keys() == {1}
    engine.check_integrity()
    assert not engine.has_work


def test_unknown_keys_and_idle_steps_do_nothing(seed: int) -> None:
    engine = make_engine(seed)
    engine.cancel("nobody")
    assert not step(engine)
    assert engine.num_steps == 0
    engine.check_integrity()


def test_queue_time_is_told_once(seed: int) -> None:
    engine = make_engine(seed, limits=SchedulerLimits(8, 32, 1, 3))
    for key in (0, 1):
        submit(engine, key, [5, 6], max_tokens=2, ignore_eos=True)
    first = [output.queue_s for _ in range(4) for output in step(engine).values()]
    assert first[1] == first[3] == 0.0
    assert 0.0 <= first[0] < first[2] < 60.0


def test_resumed_with_all_its_outputs_ends_at_once(seed: int) -> None:
    engine = make_engine(seed)
    sampling = Sampling(max_tokens=3, ignore_eos=True)
    engine.submit(0, Submit(prompt_ids=[5, 6], output_ids=[7, 8, 9], sampling=sampling))
    output = finish(engine)[0]
    assert output.finish_reason == LENGTH
    assert not output.token_ids


def test_a_step_computes_without_gradients(seed: int) -> None:
    seen: list[bool] = []

    def experts(layer: int, rows_TD: Tensor) -> Tensor:
        seen.append(rows_TD.requires_grad or torch.is_grad_enabled())
        return rows_TD

    engine = make_engine(seed, experts=experts)
    submit(engine, 0, [5], max_tokens=1)
    finish(engine)
    assert seen == [False, False]


class DegradedExperts:
    """Answers as if experts were missing, where the test says so: (step, layer) -> which."""

    def __init__(self, missing: dict[tuple[int, int], tuple[int, ...]]) -> None:
        self._missing = missing
        self.num_steps = 0

    def __call__(self, layer: int, rows_TD: Tensor) -> Tensor | DegradedRows:
        self.num_steps += layer == 0
        answer_TD = mild_experts(layer, rows_TD)
        missing = self._missing.get((self.num_steps, layer))
        return DegradedRows(answer_TD, missing) if missing else answer_TD


def test_missing_experts_are_told_with_the_first_token_that_they_touch(seed: int) -> None:
    """Once each, whatever the layer; all that is known then, so that the last message is complete by itself."""
    experts = DegradedExperts({(2, 0): (3,), (2, 1): (1,), (3, 1): (1, 3), (4, 0): (0, 1)})
    engine = make_engine(seed, experts=experts)
    submit(engine, 0, [5, 6], max_tokens=6, ignore_eos=True)
    told = [list(step(engine)[0].missing_experts) for _ in range(6)]
    assert told == [[], [1, 3], [], [0, 1, 3], [], []]
    assert not engine.has_work


def test_missing_experts_are_told_to_the_sequences_of_the_step_alone(seed: int) -> None:
    experts = DegradedExperts({(1, 0): (2,)})
    engine = make_engine(seed, experts=experts, limits=SchedulerLimits(8, 32, max_sequences=2, max_queued=3))
    for key in range(3):  # the last one waits for a lane
        submit(engine, key, [5, 6, key], max_tokens=2, ignore_eos=True)
    outputs = finish(engine)
    assert [list(outputs[key].missing_experts) for key in range(3)] == [[2], [2], []]


def test_a_prompt_read_without_an_expert_tells_so_with_its_first_token(seed: int) -> None:
    experts = DegradedExperts({(1, 0): (2,)})
    engine = make_engine(seed, experts=experts)
    submit(engine, 0, list(range(2, 22)), max_tokens=3, ignore_eos=True)  # three chunks
    told = [list(output.missing_experts) for _ in range(5) for output in step(engine).values()]
    assert told == [[2], [], []]


def test_a_sequence_that_ends_with_the_degraded_step_tells_so(seed: int) -> None:
    engine = make_engine(seed, experts=DegradedExperts({(1, 1): (2,), (2, 1): (3,)}))
    submit(engine, 0, [5, 6], logit_bias=ALWAYS_EOS)
    submit(engine, 1, [5, 6], max_tokens=0)
    submit(engine, 2, [5, 6], max_tokens=2, ignore_eos=True, logprobs=1)
    outputs = finish(engine)
    assert [list(outputs[key].missing_experts) for key in range(2)] == [[2], [2]]
    assert set(outputs[2].missing_experts) == {2, 3}


def test_an_expert_that_the_model_does_not_have_cannot_be_missing(seed: int) -> None:
    engine = make_engine(seed, experts=DegradedExperts({(1, 0): (1, 10**9)}))
    submit(engine, 0, [5, 6], max_tokens=2)
    (output,) = finish(engine).values()
    assert output.failure.code == "internal"
    assert "names expert 1000000000 as missing" in output.failure.message
    assert not output.missing_experts


def test_degraded_rows_are_the_rows(seed: int) -> None:
    engine = make_engine(seed, experts=DegradedExperts({(number, 0): (1,) for number in range(1, 9)}))
    submit(engine, 0, [5, 6], max_tokens=8, ignore_eos=True)
    assert list(finish(engine)[0].token_ids) == outputs_of(seed, [5, 6], max_tokens=8, ignore_eos=True)
