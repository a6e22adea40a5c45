"""vLLM's extensions: what reaches the node, and what comes back in vLLM's shapes."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention import bad_words as of_nodes
from protos.generation_pb2 import Submit
from serving import bad_words as of_gateways
from serving.fake import FakeGenerator
from serving.tokenizer import TextCodec
from serving.truncation import Truncation
from tests.serving.conftest import MODEL, Serve, Served
from tests.serving.small_tokenizers import build_sentencepiece_like

PATHS = ["/v1/completions", "/v1/chat/completions"]


@pytest.fixture
def served(serve: Serve) -> Served:
    served = serve(FakeGenerator(eos_token_ids=frozenset({1})))
    served.generator.outputs = [served.ids("hello world")]
    return served


def post(served: Served, path: str = PATHS[0], **fields: Any) -> Any:
    prompt = {"prompt": "hello"} if path == PATHS[0] else {"messages": [{"role": "user", "content": "hello"}]}
    response = httpx.post(served.url + path, json={"model": MODEL, "max_tokens": 3, **prompt, **fields}, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()


def submitted(served: Served, path: str, **fields: Any) -> Submit:
    post(served, path, **fields)
    return served.generator.submits[-1]


@pytest.mark.parametrize("path", PATHS)
def test_what_reaches_the_node(served: Served, path: str) -> None:
    submit = submitted(served, path, allowed_token_ids=[9, 5, 9], priority=-3, n=2, bad_words=["hello"])
    assert list(submit.sampling.allowed_token_ids) == [5, 9]
    assert submit.priority == -3
    assert not submit.sampling.HasField("prompt_alternatives")
    plain = submitted(served, path, priority=None)
    assert plain.priority == 0
    assert not plain.sampling.allowed_token_ids
    assert not plain.sampling.bad_word_ids
    assert not plain.sampling.prompt_logprobs


@pytest.mark.parametrize("words", [["hello"], [" hello", "STOP END"], ["é", "x"]])
def test_bad_words_with_a_blank_before_them_and_without(served: Served, words: list[str]) -> None:
    sampling = submitted(served, PATHS[0], bad_words=words).sampling
    left, forms = list(sampling.bad_word_ids), []
    for length in sampling.num_ids_per_bad_word:
        forms.append(served.codec.decode(left[:length]))
        del left[:length]
    assert left == []
    for word in words:
        bare = word.lstrip()
        assert bare in forms
        ids, after_blank = served.ids(bare), served.ids(" " + bare)
        assert (" " + bare in forms) == (len(ids) == len(after_blank))


def test_bad_words_of_a_tokenizer_that_begins_each_text_with_a_blank(serve: Serve) -> None:
    served = serve(FakeGenerator(), codec=TextCodec(build_sentencepiece_like()))
    sampling = submitted(served, PATHS[0], prompt=[5], bad_words=["lo"]).sampling
    assert served.codec.decode(list(sampling.bad_word_ids)) == "lo"
    assert len(sampling.num_ids_per_bad_word) == 1, "another blank is one more token"


def test_gateways_and_nodes_agree_on_how_long_a_bad_word_is() -> None:
    assert of_gateways.MAX_TOKENS == of_nodes.MAX_BAD_WORD_TOKENS


def expected_prompt_logprobs(served: Served, token_ids: list[int], num: int) -> list[Any]:
    """What the fake generator's scores are in vLLM's shape."""

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        decoded = served.codec.token_bytes(token_id).decode(errors="replace")
        return {"logprob": logprob, "rank": rank, "decoded_token": decoded}

    scored = [
        {str(token_id + i): entry(token_id + i, -0.5 - 0.25 * i, i + 1) for i in range(max(num, 1))}
        for token_id in token_ids[1:]
    ]
    return [None, *scored]


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("num", [0, 2])
def test_prompt_logprobs_of_completions(served: Served, num: int, max_tokens: int) -> None:
    prompts = ["hello", "naïve"]
    answer = post(served, prompt=prompts, prompt_logprobs=num, n=2, max_tokens=max_tokens)
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [
        expected_prompt_logprobs(served, served.ids(prompt), num) for prompt in prompts for _ in range(2)
    ]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 4 * max_tokens


def test_prompt_logprobs_of_chats(served: Served) -> None:
    answer = post(served, PATHS[1], prompt_logprobs=1, return_token_ids=True, n=2)
    assert answer["prompt_logprobs"] == expected_prompt_logprobs(served, answer["prompt_token_ids"], 1)
    assert not any("prompt_logprobs" in choice for choice in answer["choices"])
    assert [submit.sampling.prompt_logprobs for submit in served.generator.submits] == [True, False]


def test_prompt_logprobs_count_for_themselves_and_for_echo(served: Served) -> None:
    answer = post(served, prompt_logprobs=2, logprobs=1, echo=True)
    ids = served.ids("hello")
    assert answer["choices"][0]["prompt_logprobs"] == expected_prompt_logprobs(served, ids, 2)
    assert [len(top) for top in answer["choices"][0]["logprobs"]["top_logprobs"][1:]] == [2] * (len(ids) - 1) + [1] * 3


def test_scored_prompts_are_bounded_together(served: Served) -> None:
    body = {"model": MODEL, "prompt": [[5] * 500] * 128, "prompt_logprobs": 0, "max_tokens": 1}
    response = httpx.post(served.url + PATHS[0], json=body, timeout=20)
    assert response.status_code == 400
    assert "max_scored_tokens" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_named_alternatives_and_names_by_id(served: Served, stream: bool) -> None:
    ids = served.ids("hello world")[:3]
    fields: dict[str, Any] = {"max_tokens": 3, "stream": stream}
    fields["extra_body"] = {"logprob_token_ids": [7, 300], "return_tokens_as_token_ids": True}
    client = served.client()
    legacy: Any = client.completions.create(model=MODEL, prompt="hello", logprobs=0, **fields)
    choices = [chunk.choices[0] for chunk in legacy] if stream else [legacy.choices[0]]
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    assert [token for part in parts for token in part.tokens] == [f"token_id:{token_id}" for token_id in ids]
    for part in parts:
        for token, top in zip(part.tokens, part.top_logprobs, strict=True):
            assert top == {"token_id:7": -0.5, "token_id:300": -0.75, token: -0.5}
    messages: Any = [{"role": "user", "content": "hello"}]
    chat: Any = client.chat.completions.create(model=MODEL, messages=messages, logprobs=True, **fields)
    choices = [chunk.choices[0] for chunk in chat] if stream else [chat.choices[0]]
    content = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [token.token for token in content] == [f"token_id:{token_id}" for token_id in ids]
    assert bytes(byte for token in content for byte in token.bytes) == b"".join(map(served.codec.token_bytes, ids))
    assert [[top.token for top in token.top_logprobs] for token in content] == [["token_id:7", "token_id:300"]] * 3


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 10), st.booleans())
def test_a_prompt_is_cut_at_one_end(token_ids: list[int], keep: int, right: bool) -> None:
    cut = Truncation(keep, right).cut(token_ids)
    assert len(cut) == min(len(token_ids), keep)
    assert cut == (token_ids[: len(cut)] if right else token_ids[len(token_ids) - len(cut) :])


@pytest.mark.parametrize("prompt", ["hello world " * 400, [*range(5, 305), *range(5, 305)]])
def test_truncated_prompts(served: Served, prompt: str | list[int]) -> None:
    ids = served.ids(prompt) if isinstance(prompt, str) else prompt
    for fields, kept in (
        ({"truncate_prompt_tokens": 7}, ids[-7:]),
        ({"truncate_prompt_tokens": 7, "truncation_side": "right"}, ids[:7]),
        ({"truncate_prompt_tokens": -1}, ids[-509:]),  # of a context of 512; three are for the output
        ({"truncate_prompt_tokens": 10_000, "prompt": [5, 6]}, [5, 6]),
    ):
        answer = post(served, **{"prompt": prompt, "return_token_ids": True, "echo": True, **fields})
        assert answer["choices"][0]["prompt_token_ids"] == kept
        assert answer["usage"]["prompt_tokens"] == len(kept)
        assert answer["choices"][0]["text"].startswith(served.codec.decode(kept))
    body = {"model": MODEL, "prompt": prompt, "truncate_prompt_tokens": 512, "max_tokens": 3}
    refused = httpx.post(served.url + PATHS[0], json=body).json()
    assert refused["error"]["code"] == "context_length_exceeded"


def test_truncated_chats(served: Served) -> None:
    messages = [{"role": "user", "content": "hello world " * 200}]
    whole = httpx.post(served.url + "/tokenize", json={"messages": messages}).json()["tokens"]
    answer = post(served, PATHS[1], messages=messages, truncate_prompt_tokens=20, return_token_ids=True)
    assert answer["prompt_token_ids"] == whole[-20:]


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens_and_the_best_token(served: Served, path: str) -> None:
    for fields in ({"max_tokens": 0}, {"max_tokens": 0, "logprobs": path == PATHS[1] or 1, "n": 2}):
        answer = post(served, path, **fields)
        assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["usage"]["prompt_tokens"] > 0
    assert served.generator.submits == [], "nothing is computed for no tokens"
    assert 0 < submitted(served, path, top_p=0).sampling.top_p < 1e-30
