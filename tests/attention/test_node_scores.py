"""Log-probabilities of prompts: whatever their number, each message fits a frame, and nothing is lost or moved."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention import node
from attention.node import _send_scores  # pyright: ignore[reportPrivateUsage]
from protos.dispatch_pb2 import Header
from protos.generation_pb2 import SequenceOutput, TokenLogprob
from transport.frames import MAX_HEADER_BYTES
from transport.server import Session

PAIRS = st.lists(st.integers(0, 3), max_size=30)


def scored(alternatives: list[int]) -> SequenceOutput:
    scores = [
        TokenLogprob(token_id=number, alternative_ids=range(count), alternative_logprobs=[0.5] * count)
        for number, count in enumerate(alternatives)
    ]
    return SequenceOutput(sequence_id=7, prompt_logprobs=scores, token_ids=[1])


def session_of(sent: list[Header]) -> Session:
    return cast("Session", SimpleNamespace(send=sent.append))


@given(PAIRS, st.integers(0, 40), st.integers(4, 20))
def test_scores_are_sent_ahead_where_there_is_no_room(alternatives: list[int], room: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node, "MAX_PAIRS_PER_FRAME", most)
        message, sent = scored(alternatives), list[Header]()
        expected = [score.token_id for score in message.prompt_logprobs]
        kept = _send_scores(session_of(sent), message, room)
        ahead = [one for header in sent for one in header.step_output.outputs]
        got = [score.token_id for one in [*ahead, message] for score in one.prompt_logprobs]
        assert got == expected
        assert kept == sum(1 + len(score.alternative_ids) for score in message.prompt_logprobs) <= room
        assert all(one.sequence_id == 7 and not one.token_ids for one in ahead)
        assert message.token_ids == [1]


@pytest.mark.parametrize("num_alternatives", [0, 20, 2000])
def test_each_message_is_half_a_header_at_most(num_alternatives: int) -> None:
    each: Any = TokenLogprob(
        token_id=1 << 20,
        logprob=0.5,
        rank=1 << 20,
        alternative_ids=[1 << 20] * num_alternatives,
        alternative_logprobs=[0.5] * num_alternatives,
    )
    num_scores = 3 * node.MAX_PAIRS_PER_FRAME // (1 + num_alternatives) // 2
    message, sent = SequenceOutput(sequence_id=1, prompt_logprobs=[each] * num_scores), list[Header]()
    assert _send_scores(session_of(sent), message, node.MAX_PAIRS_PER_FRAME) == 0
    assert len(sent) >= 2
    assert max(header.ByteSize() for header in sent) <= MAX_HEADER_BYTES // 2 + 4096
