"""Every kind of refusal: its status, its shape, and that the message says what to do."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from serving.fake import FakeGenerator
from serving.generator import GenerationError
from serving.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from serving.settings import RequestLimits
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve, Served

COMPLETION = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def post(served: Served, path: str, body: Any, **options: Any) -> tuple[int, dict[str, Any], httpx.Headers]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(served.url + path, content=content, timeout=20, **options)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error, response.headers


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0 (given: -1)"),
        ({"temperature": "hot"}, "temperature", "given: 'hot'"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -2}, "top_k", "greater than or equal to 1"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "at most 128"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 0, "min_tokens": 1}, "min_tokens", "min_tokens (1) exceeds max_tokens (0)"),
        ({"min_tokens": 5}, "min_tokens", "min_tokens (5) exceeds max_tokens (4)"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]", "greater than or equal to 0"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "ids go from 0 to 399"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": "x" * 257}, "stop", "at most 256"),
        ({"stop_token_ids": [400]}, "stop_token_ids", "not in the vocabulary"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"prompt": None}, "prompt", "a list of token ids"),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": ""}, "prompt", "no tokens"),
        ({"prompt": [1, "a"]}, "prompt", "given: [1, 'a']"),
        ({"prompt": [True]}, "prompt", "list of token ids"),
        ({"prompt": [-1]}, "prompt", "list of token ids"),
        ({"prompt": [[1], []]}, "prompt", "not empty"),
        ({"prompt": [400]}, "prompt", "ids go from 0 to 399"),
        ({"prompt": ["a"] * 257}, "prompt", "at most 256"),
        ({"prompt": ["a"] * 5, "n": 128}, "n", "640 sequences"),
        ({"stream_options": {"include_usage": True}}, None, "only when stream is true"),
        ({"task": "code"}, "task", "does not route by task"),
        ({"best_of": 3}, "best_of", "equal to n (1)"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"use_beam_search": True}, "use_beam_search", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "only {'type': 'text'}"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "at most 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "greater than or equal to 0"),
        ({"prompt_logprobs": 0, "stream": True}, None, "only when stream is false"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1 item"),
        ({"allowed_token_ids": [400]}, "allowed_token_ids", "not in the vocabulary"),
        ({"allowed_token_ids": [5] * 1025}, "allowed_token_ids", "at most 1024"),
        ({"bad_words": "x"}, "bad_words", "valid array"),
        ({"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
        ({"bad_words": ["x", " "]}, "bad_words", "blanks before it not counted (given: ' ')"),
        ({"bad_words": ["x" * 257]}, "bad_words", "1 to 256 characters"),
        ({"bad_words": ["0" * 100]}, "bad_words", "1 to 32 tokens"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids", "needs logprobs"),
        ({"logprob_token_ids": [], "logprobs": 1}, "logprob_token_ids", "at least 1 item"),
        ({"logprob_token_ids": [400], "logprobs": 1}, "logprob_token_ids", "not in the vocabulary"),
        ({"logprob_token_ids": [5] * 21, "logprobs": 1}, "logprob_token_ids", "at most 20"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "greater than or equal to -1"),
        ({"truncate_prompt_tokens": 0}, None, "-1 or at least 1"),
        ({"truncation_side": "middle"}, "truncation_side", "'left' or 'right'"),
        ({"priority": 2**63}, "priority", "less than"),
        ({"priority": 1.5}, "priority", "integer"),
        ({"guided_json": {"a": 1}}, "guided_json", "not supported"),
        ({"seed": 2**64}, "seed", "less than"),
    ],
)  # fmt: skip
def test_bad_completions(shared: Served, change: dict[str, Any], param: str | None, words: str) -> None:
    status, error, _ = post(shared, "/v1/completions", COMPLETION | change)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "required"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "not one of"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
            "'image_url' are not supported",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"echo": True}, "echo", "not supported"),
        ({"top_logprobs": 2}, None, "only when logprobs is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids", "needs logprobs"),
        ({"continue_final_message": True}, None, "add_generation_prompt"),
        ({"chat_template": "x"}, "chat_template", "the model's checkpoint"),
    ],
)
def test_bad_chats(shared: Served, change: dict[str, Any], param: str | None, words: str) -> None:
    status, error, _ = post(shared, "/v1/chat/completions", CHAT | change)
    assert status == 400
    assert error["param"] == param
    assert words in error["message"]


@pytest.fixture
def shared(serve: Serve) -> Served:
    return serve(FakeGenerator())


def test_bodies_that_are_no_json_objects(shared: Served) -> None:
    for body, words in ((b"{", "not valid JSON"), (b"[]", "object"), (b"", "not valid JSON"), (b"\xff{}", "JSON")):
        status, error, _ = post(shared, "/v1/completions", body)
        assert status == 400
        assert words in error["message"]


def test_an_unknown_model(shared: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().completions.create(model="gpt-9", prompt="x")
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message
    with pytest.raises(openai.NotFoundError):
        shared.client().models.retrieve("gpt-9")


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(600, 4), (510, 3), (512, None)])
def test_a_prompt_beyond_the_context(shared: Served, num_prompt: int, max_tokens: int | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client().completions.create(model=MODEL, prompt=[5] * num_prompt, max_tokens=max_tokens)
    assert caught.value.code == "context_length_exceeded"
    for word in ("512", str(num_prompt), "max_tokens" if max_tokens else "1 token"):
        assert word in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        ("queue_full", 429, "3"),
        ("expert_unavailable", 503, "3"),
        ("context_length", 400, None),
        ("invalid_request", 400, None),
        ("internal", 500, None),
        ("from_the_future", 500, None),
    ],
)
def test_what_nodes_say(serve: Serve, code: str, status: int, retry: str | None, stream: bool) -> None:
    failure = GenerationError(code, "the node's own words")
    served = serve(FakeGenerator(failures={0: failure}), retry_after_s=2.5)
    got, error, headers = post(served, "/v1/completions", COMPLETION | {"stream": stream})
    assert got == status
    assert "the node's own words" in error["message"]
    assert headers.get("retry-after") == retry


def test_an_error_in_mid_stream(serve: Serve) -> None:
    failure = GenerationError("expert_unavailable", "expert 3 is gone")
    served = serve(FakeGenerator(failures={3: failure}, delay_s=0.01))
    with httpx.stream("POST", served.url + "/v1/completions", json=COMPLETION | {"stream": True}) as response:
        assert response.status_code == 200
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "expert_unavailable"
    assert len(events) > 2
    stream = served.client().completions.create(model=MODEL, prompt="hello", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="expert 3 is gone"):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_one_failing_sequence_ends_the_others(serve: Serve, stream: bool) -> None:
    served = serve(FakeGenerator(failures={2: GenerationError("internal", "x")}, delay_s=0.001))
    httpx.post(served.url + "/v1/completions", json=COMPLETION | {"n": 3, "stream": stream})
    assert served.generator.running == 0


def test_too_slow(serve: Serve) -> None:
    served = serve(FakeGenerator(delay_s=0.15), request_timeout_s=0.4)
    status, error, _ = post(served, "/v1/completions", COMPLETION)
    assert (status, error["code"]) == (504, "timeout")
    response = httpx.post(served.url + "/v1/completions", json=COMPLETION | {"stream": True})
    assert response.status_code == 200
    assert '"code": "timeout"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert served.generator.running == 0


def test_a_slow_body_takes_of_the_request_s_time(serve: Serve) -> None:
    def slowly() -> Iterator[bytes]:
        yield json.dumps(COMPLETION).encode()
        time.sleep(0.5)

    served = serve(FakeGenerator(), request_timeout_s=0.4)
    assert httpx.post(served.url + "/v1/completions", content=slowly(), timeout=20).status_code == 504


def test_keys(serve: Serve) -> None:
    served = serve(FakeGenerator(), api_keys=("first-key", "second-key"))
    assert served.client(api_key="second-key").models.list().data[0].id == MODEL
    for key in ("wrong", "first-ke", "first-key2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            served.client(api_key=key).completions.create(model=MODEL, prompt="x")
        assert caught.value.code == "invalid_api_key"
    assert httpx.get(served.url + "/v1/models").status_code == 401
    assert httpx.get(served.url + "/metrics").status_code == 401
    assert httpx.get(served.url + "/v1/models", headers={"Authorization": "Basic first-key"}).status_code == 401
    assert httpx.get(served.url + "/health").status_code == 200
    assert "second-key" not in repr(served.settings)


def test_too_large_bodies(serve: Serve) -> None:
    served = serve(FakeGenerator(), limits=RequestLimits(max_body_bytes=1000))
    body = json.dumps(COMPLETION | {"prompt": "x" * 1000}).encode()
    status, error, _ = post(served, "/v1/completions", body)
    assert (status, error["code"]) == (413, "request_too_large")
    assert "1000 bytes" in error["message"]
    response = httpx.post(served.url + "/v1/completions", content=iter([body[:600], body[600:]]))  # no length declared
    assert response.status_code == 413


def test_a_body_that_never_ends(serve: Serve) -> None:
    import socket

    served = serve(FakeGenerator(), limits=RequestLimits(body_timeout_s=0.2))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(4096)


def test_paths_and_methods(shared: Served) -> None:
    response = httpx.get(shared.url + "/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    response = httpx.get(shared.url + "/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "error" in response.json()


def test_models_without_tokenizer_or_template(serve: Serve, codec: TextCodec) -> None:
    bare = serve(FakeGenerator(), codec=TextCodec(None))
    for path, body in (
        ("/v1/completions", COMPLETION),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [5]}),
    ):
        status, error, _ = post(bare, path, body)
        assert status == 400
        assert "no tokenizer" in error["message"]
    status, error, _ = post(bare, "/v1/chat/completions", CHAT)
    assert (status, error["code"]) == (400, "no_chat_template")


def test_a_broken_generator_is_an_internal_error(serve: Serve) -> None:
    served = serve(FakeGenerator(outputs=[[]]))  # ZeroDivisionError inside
    status, error, _ = post(served, "/v1/completions", COMPLETION)
    assert (status, error["code"]) == (500, "internal")
    assert "Zero" not in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "routes by task, and it is missing; allowed: python, C++ & co."),
        ({"task": ""}, "it is missing; allowed: python, C++ & co."),
        ({"task": "poetry"}, "'poetry' is none of them; allowed: python, C++ & co."),
    ],
)
def test_a_model_that_routes_by_task_needs_one(serve: Serve, path: str, change: dict[str, Any], words: str) -> None:
    served = serve(FakeGenerator(), tasks=("python", "C++ & co."))
    body = COMPLETION if path == "/v1/completions" else CHAT
    status, error, _ = post(served, path, body | change)
    assert (status, error["param"]) == (400, "task")
    assert words in error["message"]
    assert not served.generator.submits


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_task_reaches_the_nodes(serve: Serve, path: str) -> None:
    served = serve(FakeGenerator(), tasks=("python", "C++ & co."))
    body = (COMPLETION if path == "/v1/completions" else CHAT) | {"task": "C++ & co.", "n": 2}
    assert httpx.post(served.url + path, json=body, timeout=20).status_code == 200
    assert [submit.task for submit in served.generator.submits] == ["C++ & co."] * 2


@pytest.mark.parametrize("tasks", [(), ("python",)])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_no_error_repeats_much_of_what_was_sent(serve: Serve, path: str, tasks: tuple[str, ...]) -> None:
    served = serve(FakeGenerator(), tasks=tasks, vocab_size=None)
    kind = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody, "/tokenize": TokenizeBody}
    base = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT, "/tokenize": {"prompt": "x"}}.get(path, {})
    long = "long" * 5000
    refused = 0
    with httpx.Client(base_url=served.url, timeout=20) as client:
        for name in [*kind.get(path, DetokenizeBody).model_fields, long]:
            for value in (long, [long], {long: long}, [{long: long, "role": long, "type": long}], 10**4000):
                response = client.post(path, json=base | {name: value})
                assert response.status_code < 500
                if response.status_code != 200:
                    refused += 1
                    assert len(response.text) < 700, (name, response.text[:300])
    assert refused > 10


def test_no_error_repeats_a_long_path_or_header(shared: Served) -> None:
    long = "long" * 1500
    for response in (
        httpx.get(f"{shared.url}/{long}"),
        httpx.get(f"{shared.url}/v1/models/{long}"),
        httpx.request("L" * 6000, shared.url + "/v1/models"),
        httpx.post(shared.url + "/v1/completions", json=COMPLETION, headers={"Origin": f"https://{long}"}),
        httpx.post(shared.url + "/v1/completions", content=b"{}", headers={"Content-Type": long}),
    ):
        assert response.status_code in (400, 403, 404, 405, 415)
        assert len(response.text) < 400
