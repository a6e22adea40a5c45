"""What a request may cost beyond its body (prompts, messages, scored tokens, outputs): refused before the work."""

import json
from typing import Any

import httpx
import pytest

from protos.generation_pb2 import Sampling
from serving.choice import MAX_PARTS, Delta
from serving.costs import most_output_tokens
from serving.errors import ApiError
from serving.fake import FakeGenerator
from serving.prompts import Prompt
from serving.sampling import Submits, choice_seed
from serving.settings import GatewaySettings, RequestLimits
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
USER = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}
IDS = [[5] * 40] * 3
ECHO: dict[str, Any] = {"echo": True, "logprobs": 0}
LIMITS = RequestLimits(
    max_text_bytes=60, max_prompt_tokens=119, max_messages=4, max_scored_tokens=100, max_output_tokens=200
)


@pytest.mark.parametrize("echo", [True, False])
def test_a_few_tokens_that_stand_for_much_text_are_not_repeated_without_end(echo: bool) -> None:
    """A text of 190,000 blanks may be 1,500 tokens: 512 choices of it were an answer of 97 MB."""
    settings = GatewaySettings(MODEL, 512, limits=LIMITS)

    def most(num_chars: int) -> int:
        wishes: dict[str, Any] = {"prompts_told": 0, "scores_outputs": False, "stream": True}
        prompts = [Prompt([5], " " * num_chars)] * 2
        return most_output_tokens(prompts, 4, settings, num_copies=4, echo=echo, **wishes)

    assert most(400) == 512
    if not echo:
        assert most(401) == 512
        return
    with pytest.raises(ApiError, match="3208 characters in all; at most 3200 are allowed"):
        most(401)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/completions", {"prompt": "x" * 61}, "prompt", "61 bytes, at most 60"),
        ("/v1/completions", {"prompt": ["x", "\u00e9" * 31]}, "prompt", "62 bytes, at most 60"),
        ("/v1/completions", {"prompt": IDS}, "prompt", "119 tokens"),
        ("/v1/completions", {"prompt": ["a b c d e f g"] * 30}, "prompt", "119 tokens"),
        ("/v1/completions", {"prompt": [[5] * 51] * 2} | ECHO, "logprobs", "102 tokens"),
        ("/v1/completions", {"prompt": [5] * 26, "n": 4} | ECHO, "logprobs", "104 tokens"),
        ("/v1/completions", {"prompt": [5] * 51, "prompt_logprobs": 0} | ECHO, "logprobs", "102 tokens"),
        ("/v1/completions", {"max_tokens": 67, "n": 3}, "max_tokens", "may have 66 each"),
        ("/v1/completions", {"max_tokens": 34, "n": 3, "logprobs": 0}, "max_tokens", "may have 33 each"),
        ("/v1/completions", {"prompt": [5] * 97} | ECHO, "max_tokens", "may have 3 each"),
        ("/v1/chat/completions", {"messages": [USER] * 5}, "messages", "at most 4"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [PART] * 4}]}, "messages", "at most 4"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 60}]}, "messages", "more than 60"),
        ("/tokenize", {"prompt": "x" * 61}, "prompt", "61 bytes, at most 60"),
        ("/tokenize", {"messages": [USER] * 5}, "messages", "at most 4"),
        ("/detokenize", {"tokens": [5] * 120}, "tokens", "at most 119"),
    ],
)  # fmt: skip
def test_too_costly(serve: Serve, path: str, body: dict[str, Any], param: str, words: str) -> None:
    served = serve(FakeGenerator(), limits=LIMITS)
    defaults = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}.get(path, {"model": MODEL})
    response = httpx.post(served.url + path, json=defaults | body, timeout=20)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert not served.generator.submits


@pytest.mark.parametrize(
    ("path", "body", "limits", "each"),
    [
        ("/v1/chat/completions", {"n": 2}, {"max_output_tokens": 200}, 100),
        ("/v1/chat/completions", {"n": 2, "logprobs": True}, {"max_scored_tokens": 60}, 30),
        ("/v1/completions", {"n": 2}, {"max_output_tokens": 24}, 12),
        ("/v1/completions", {"n": 2}, {"max_output_tokens": 200}, 16),
    ],
)
def test_outputs_that_the_request_leaves_open_are_cut(
    serve: Serve, path: str, body: dict[str, Any], limits: dict[str, int], each: int
) -> None:
    served = serve(FakeGenerator(), limits=RequestLimits(**limits))
    asked = ({"prompt": "hello"} if path == "/v1/completions" else {"messages": [USER]}) | body
    assert httpx.post(served.url + path, json=asked, timeout=20).status_code == 200
    assert [submit.sampling.max_tokens for submit in served.generator.submits] == [each] * 2
    served.generator.submits.clear()
    with httpx.stream("POST", served.url + path, json=asked | {"stream": True}, timeout=20) as response:
        assert response.status_code == 200
        response.read()
    assert served.generator.submits[0].sampling.max_tokens >= max(each, 16), "a stream holds nothing"


def test_a_text_that_is_too_long_is_not_tokenized(serve: Serve, codec: TextCodec) -> None:
    class Watched(TextCodec):
        async def encode_all(self, *args: Any, **options: Any) -> list[list[int]]:
            raise AssertionError("it was tokenized")

    served = serve(FakeGenerator(), codec=Watched(None, codec.chat_template), limits=LIMITS)
    for path, body in (("/v1/completions", {"prompt": "x" * 61}), ("/tokenize", {"prompt": "x" * 61})):
        assert httpx.post(served.url + path, json=body).status_code == 400


def test_the_first_prompt_that_is_too_long_ends_the_encoding(serve: Serve) -> None:
    served = serve(FakeGenerator(), max_context=10)
    for prompt in (["a b c d e f g h i j k"] * 200, [[5] * 11] * 200):
        response = httpx.post(served.url + "/v1/completions", json={"prompt": prompt})
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_long_answers_of_tokenize(serve: Serve) -> None:
    served = serve(FakeGenerator())
    text = "hello \u2028 w\u00f6rld \x01 " * 2000
    answer = httpx.post(served.url + "/tokenize", json={"prompt": text, "return_token_strs": True}, timeout=20).json()
    assert answer["tokens"] == served.ids(text)
    assert answer["token_strs"] == [served.codec.token_name(token_id) for token_id in answer["tokens"]]
    assert answer["count"] == len(answer["tokens"]) > 10_000
    back = httpx.post(served.url + "/detokenize", json={"tokens": answer["tokens"]}, timeout=20).json()
    assert back["prompt"] == text


def test_submits_are_made_when_asked_for() -> None:
    prompts = [Prompt([1, 2]), Prompt([3])]
    submits = Submits(prompts, [Sampling(max_tokens=4), Sampling(max_tokens=5)], 3, seed=-1, task="t")
    assert len(submits) == 6
    found = [(list(one.prompt_ids), one.sampling.max_tokens, one.sampling.seed, one.task) for one in submits]
    seeds = [choice_seed(2**64 - 1, index) for index in range(3)]
    assert found == [([1, 2], 4, seed, "t") for seed in seeds] + [([3], 5, seed, "t") for seed in seeds]
    assert submits[-1] == submits[5]
    assert submits[4:] == [submits[4], submits[5]]
    first = submits[0]
    first.prompt_ids.append(9)
    assert list(submits[0].prompt_ids) == [1, 2]
    drawn = Submits(prompts, [Sampling(), Sampling()], 1, None, "")
    assert drawn[0].sampling.seed != drawn[1].sampling.seed


def test_parts_of_a_text_become_one() -> None:
    delta = Delta()
    for index in range(1000):
        delta.add_text(str(index))
        assert len(delta.parts) < MAX_PARTS
    assert delta.text == "".join(map(str, range(1000)))


def test_token_ids_are_kept_for_those_who_asked(serve: Serve) -> None:
    served = serve(FakeGenerator(outputs=[[5, 6, 7]]))
    for options, kept in (({}, False), ({"return_token_ids": True}, True), ({"logprobs": 1}, False)):
        body = json.dumps(COMPLETION | options)
        [choice] = httpx.post(served.url + "/v1/completions", content=body).json()["choices"]
        assert ("token_ids" in choice) == kept
        assert choice["text"] == served.codec.decode([5, 6, 7, 5])
