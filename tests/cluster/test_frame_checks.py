"""Settings that ask for more than a frame carries are refused, with field and limit; the limit itself is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.frame_checks import frame_problems
from cluster.resolve import resolve
from cluster.room import Room
from cluster.spec import SpecError, shards, spec_from_dict
from model.config import MixtralConfig, read_config
from model.routing import BY_TOKEN, Routing
from protos.dispatch_pb2 import Header
from protos.generation_pb2 import Sampling, SequenceOutput, StepOutput, Submit, TokenLogprob
from spec.errors import Problem
from tests.random_checkpoint import make_checkpoint
from transport.frames import MAX_BODY_BYTES, MAX_HEADER_BYTES

ROOM = Room((2.0,), own=True)
SENTENCE = Routing("sentence", positions=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frames") / "model"
    make_checkpoint(directory, seed=1)
    return directory


@pytest.fixture(scope="module")
def mixtral(model: Path) -> MixtralConfig:
    """The size of Mixtral 8x7B."""
    return replace(read_config(model), hidden_size=4096, num_experts=8, top_k=2, vocab_size=32000, max_context=32768)


def problems(config: MixtralConfig, dtype: str = "bfloat16", max_context: int = 0, **sections: Any) -> list[Problem]:
    spec = spec_from_dict({"model": {"path": "/models/mixtral"}, **sections})
    plans = shards(spec, config.num_experts, 8)
    return list(frame_problems(spec, config, dtype, max_context or config.max_context, plans))


@pytest.mark.parametrize(
    ("dtype", "routing", "per_actor", "most"),
    [
        ("bfloat16", BY_TOKEN, 1, MAX_BODY_BYTES // (4096 * 2)),
        ("bfloat16", BY_TOKEN, 8, MAX_BODY_BYTES // (4096 * 2 * 2)),
        ("float32", BY_TOKEN, 1, MAX_BODY_BYTES // (4096 * 4)),
        ("bfloat16", SENTENCE, 1, MAX_BODY_BYTES // (4096 * 2 * 2)),
        ("float32", SENTENCE, 8, MAX_BODY_BYTES // (4096 * 4 * 2)),
    ],
)
def test_the_largest_step_fits_one_frame(
    mixtral: MixtralConfig, dtype: str, routing: Routing, per_actor: int, most: int
) -> None:
    config = replace(mixtral, routing=routing)
    experts = {"per_actor": per_actor, "slices": 1}
    assert problems(config, dtype, attention={"max_batch_tokens": most}, experts=experts) == []
    (problem,) = problems(config, dtype, attention={"max_batch_tokens": most + 1}, experts=experts)
    assert problem.field == "attention.max_batch_tokens"
    assert f"{most + 1} was given; allowed: {most} at most" in problem.text


def test_where_the_step_follows_the_sequences_they_are_named(mixtral: MixtralConfig) -> None:
    found = problems(mixtral, attention={"max_sequences": 1 << 20})
    assert {problem.field for problem in found} == {"attention.max_sequences"}


def test_what_a_step_gives_to_one_gateway_fits_one_frame(mixtral: MixtralConfig) -> None:
    (problem,) = problems(mixtral, attention={"max_sequences": 30000})
    assert problem.field == "attention.max_sequences"
    most = int(problem.text.split("allowed: ")[1].split()[0])
    assert problems(mixtral, attention={"max_sequences": most}) == []
    largest, score = (1 << 32) - 1, 1.5
    logprob = TokenLogprob(
        token_id=31999, logprob=score, rank=32000, alternative_ids=[31999] * 20, alternative_logprobs=[score] * 20
    )
    output = SequenceOutput(
        sequence_id=largest,
        token_ids=[31999],
        logprobs=[logprob],
        finish_reason=1,
        stop_token_id=31999,
        queue_s=score,
        missing_experts=range(8),
    )
    sent = Header(step_output=StepOutput(outputs=[output] * most))
    assert sent.ByteSize() <= MAX_HEADER_BYTES // 2


def test_the_longest_sequence_fits_one_frame(mixtral: MixtralConfig) -> None:
    (problem,) = problems(mixtral, max_context=1 << 30)
    assert problem.field == "model.max_context"
    most = int(problem.text.split("allowed: ")[1].split()[0])
    assert problems(mixtral, max_context=most) == []
    sampling = Sampling(
        max_tokens=most,
        temperature=1.5,
        top_p=0.5,
        min_p=0.5,
        seed=1 << 63,
        logit_bias={31000 + number: -1.5 for number in range(300)},
        stop_token_ids=[31999] * 64,
        allowed_token_ids=[31999] * 1024,
        bad_word_ids=[31999] * (128 * 2 * 32),
        num_ids_per_bad_word=[32] * (128 * 2),
        logprob_token_ids=[31999] * 20,
    )
    submit = Submit(sequence_id=1 << 40, prompt_ids=[31999] * most, sampling=sampling, task="t" * 256, resumed=True)
    assert Header(submit=submit).ByteSize() <= MAX_HEADER_BYTES


@pytest.mark.parametrize("name", ["max_logit_bias", "max_stop_token_ids", "max_allowed_token_ids", "max_bad_words"])
def test_a_limit_of_requests_that_alone_is_too_large(mixtral: MixtralConfig, name: str) -> None:
    (problem,) = problems(mixtral, limits={"request": {name: 1 << 22}})
    assert problem.field == "limits.request"
    assert f"{name} {1 << 22}" in problem.text


def test_the_defaults_fit_and_a_service_file_is_refused_at_the_start(model: Path) -> None:
    data: dict[str, Any] = {"model": {"path": str(model)}}
    resolve(spec_from_dict(data), ROOM)
    data["attention"] = {"max_batch_tokens": 1 << 30}
    with pytest.raises(SpecError, match=r"attention\.max_batch_tokens: 1073741824 was given; allowed: \d+ at most"):
        resolve(spec_from_dict(data), ROOM)
