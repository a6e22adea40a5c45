"""What a stream's chunks are made of, raw and through the official client."""

import json
from typing import Any

import httpx
import pytest

from serving.fake import FakeGenerator
from tests.serving.conftest import MODEL, Serve, Served

REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": ["hello", "b"], "max_tokens": 3},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "n": 2, "max_tokens": 3},
}
WISHES: list[dict[str, Any]] = [{}, {"logprobs": 1}, {"return_token_ids": True}, {"echo": True}]


def events(served: Served, path: str, body: dict[str, Any]) -> list[Any]:
    text = httpx.post(served.url + path, json={**body, "stream": True}, timeout=20).text
    data = [line.removeprefix("data: ") for line in text.split("\n\n")]
    assert data[-2:] == ["[DONE]", ""]
    return [json.loads(each) for each in data[:-2]]


def wished(path: str, wish: dict[str, Any]) -> dict[str, Any]:
    chat = path == "/v1/chat/completions"
    if chat and "echo" in wish:
        pytest.skip("chats have no echo")
    return REQUESTS[path] | ({"logprobs": True} if chat and "logprobs" in wish else wish)


@pytest.fixture(params=[1, 2, 9])
def served(serve: Serve, request: pytest.FixtureRequest) -> Served:
    served = serve(FakeGenerator(eos_token_ids=frozenset({1}), tokens_per_message=request.param, delay_s=0.001))
    served.generator.outputs = [served.ids("naïve 😀!")]
    return served


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("path", REQUESTS)
def test_a_choice_ends_with_a_chunk_of_its_own(served: Served, path: str, wish: dict[str, Any]) -> None:
    body = wished(path, wish)
    whole = httpx.post(served.url + path, json=body).json()
    by_index: dict[int, list[Any]] = {0: [], 1: []}
    for event in events(served, path, body):
        [choice] = event["choices"]
        by_index[choice["index"]].append(choice)
    for index, choices in by_index.items():
        *others, last = choices
        assert all(choice["finish_reason"] is None for choice in others)
        assert last["finish_reason"] == "length"
        assert last.get("delta", {}) == {}
        assert last.get("text", "") == ""
        assert last["logprobs"] is None
        wanted = whole["choices"][index]
        texts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices]
        assert "".join(texts) == (wanted["text"] if "text" in wanted else wanted["message"]["content"])
        assert [i for choice in choices for i in choice.get("token_ids", [])] == wanted.get("token_ids", [])


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
def test_usage_is_null_until_the_end(served: Served, path: str, continuous: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    *others, last = events(served, path, REQUESTS[path] | {"stream_options": options})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    assert {event["usage"] is not None for event in others} == {continuous}
    assert all("usage" not in event for event in events(served, path, REQUESTS[path]))


def test_the_official_client_reads_the_last_chunk(served: Served) -> None:
    create = served.client().chat.completions.create
    messages: Any = REQUESTS["/v1/chat/completions"]["messages"]
    chunks = list(create(model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}))
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].choices[0].delta.content is None
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
