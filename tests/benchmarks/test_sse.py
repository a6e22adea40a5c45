"""Reading the completions stream."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sse import EventLines, StreamState, error_message


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    return json.dumps({"choices": [{"text": text, "finish_reason": finish_reason}]}).encode()


def usage(tokens: int) -> bytes:
    return json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()


@given(st.lists(st.integers(1, 40)))
def test_lines_survive_any_cut(cuts: list[int]) -> None:
    stream = b'data: {"a": 1}\n\n: comment\r\n\r\ndata:{"b": "\xc3\xa9"}\r\n\r\nevent: x\ndata: [DONE]\n\n'
    lines, payloads, position = EventLines(), list[bytes](), 0
    for cut in [*cuts, len(stream)]:
        payloads += lines.feed(stream[position : position + cut])
        position += cut
    assert payloads == [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"[DONE]"]


def test_usage_beats_counting_chunks() -> None:
    state = StreamState()
    assert [state.take(event) for event in (chunk("a b"), chunk("c", "length"), usage(3), b"[DONE]")] == [
        True,
        True,
        False,
        False,
    ]
    assert (state.num_tokens, state.done, state.error, state.last_chunk_is_extra) == (3, True, None, False)


def test_a_chunk_that_only_closes_the_stream_is_extra() -> None:
    state = StreamState()
    for event in (chunk("a"), chunk("b"), chunk("", "length")):
        state.take(event)
    assert state.last_chunk_is_extra
    assert state.num_tokens == 2
    state.take(usage(2))
    assert state.last_chunk_is_extra


def test_a_last_token_without_text_is_a_token() -> None:
    state = StreamState()
    for event in (chunk("a"), chunk("", "length"), usage(2)):
        state.take(event)
    assert not state.last_chunk_is_extra
    assert state.num_tokens == 2


def test_ids_and_margins_where_they_were_asked_for() -> None:
    state = StreamState()
    state.take(chunk("a"))
    assert (state.token_ids, state.margins) == ([], [])
    logprobs = {"top_logprobs": [{"x": -0.5, "y": -2.0, "z": -1.5}, {"x": -0.5}]}
    choice = {"text": "bc", "finish_reason": None, "token_ids": [7, 8], "logprobs": logprobs}
    state.take(json.dumps({"choices": [choice]}).encode())
    assert state.token_ids == [7, 8]
    assert state.margins == [pytest.approx(1.0), math.inf]


def test_an_error_event_is_quoted() -> None:
    state = StreamState()
    assert not state.take(b'{"error": {"message": "expert_unavailable", "code": 503}}')
    assert state.error == "error in the stream: expert_unavailable"


def test_an_unreadable_event_is_an_error() -> None:
    for payload in (b"{", b"[1]", b"3"):
        state = StreamState()
        assert not state.take(payload)
        assert state.error is not None
        assert state.error.startswith("unreadable event")


def test_error_message_of_any_body() -> None:
    assert error_message({"error": {"message": "no"}}) == "no"
    assert error_message({"error": "plain"}) == "plain"
    assert error_message({"message": "top"}) == "top"
    assert error_message({"detail": "x"}) == "{'detail': 'x'}"
    assert error_message([1]) == "[1]"
    assert len(error_message("y" * 999)) == 200
