"""/v1/chat/completions through the official client."""

from typing import Any

import pytest

from serving.chat_template import ChatTemplate
from serving.fake import FakeGenerator
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve, Served
from tests.serving.small_templates import DEVELOPER
from tests.serving.small_tokenizers import train_byte_level

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
RENDERED = "<s>system: be brief\nuser: hello\nassistant:"


@pytest.fixture
def served(serve: Serve) -> Served:
    served = serve(FakeGenerator(eos_token_ids=frozenset({1})))
    served.generator.outputs = [[*served.ids("naïve 😀!"), 1]]
    return served


def test_a_whole_answer(served: Served) -> None:
    answer = served.client().chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "naïve 😀!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].finish_reason == "stop"
    submit = served.generator.submits[0]
    assert served.codec.decode(list(submit.prompt_ids), skip_special_tokens=False) == RENDERED
    assert submit.prompt_ids[0] == 0
    assert submit.sampling.max_tokens == 512 - len(submit.prompt_ids)


def test_a_stream(served: Served) -> None:
    served.generator.delay_s = 0.002
    chunks = list(
        served.client().chat.completions.create(
            model=MODEL, messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    for index in (0, 1):
        choices = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
        assert "".join(choice.delta.content or "" for choice in choices) == "naïve 😀!"
        assert choices[-1].finish_reason == "stop"
        assert [choice.delta.role for choice in choices[1:]] == [None] * (len(choices) - 1)


def test_the_clients_stream_helper(served: Served) -> None:
    with served.client().chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "naïve 😀!"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(served: Served, stream: bool) -> None:
    answer: Any = served.client().chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3, stream=stream
    )
    parts = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    content = [token for part in parts if part for token in part.content or []]
    spelled = bytes(byte for token in content for byte in token.bytes or [])
    assert spelled == "naïve 😀!</s>".encode()
    assert all(len(token.top_logprobs) == 3 for token in content)
    assert content[0].top_logprobs[0].logprob == content[0].logprob == -0.5


def test_limits_and_their_older_name(served: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        limit: dict[str, Any] = {name: 2}
        answer = served.client().chat.completions.create(model=MODEL, messages=MESSAGES, **limit)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2
        assert answer.choices[0].finish_reason == "length"


def test_token_ids_and_continuing_a_message(served: Served) -> None:
    body = {"return_token_ids": True, "add_generation_prompt": False, "continue_final_message": True}
    messages = [*MESSAGES, {"role": "assistant", "content": "nai"}]
    answer = served.client().chat.completions.create(model=MODEL, messages=messages, extra_body=body)
    assert answer.model_extra is not None
    prompt_ids = answer.model_extra["prompt_token_ids"]
    assert served.codec.decode(prompt_ids).endswith("assistant: nai")
    assert answer.choices[0].model_extra is not None
    assert answer.choices[0].model_extra["token_ids"] == served.generator.outputs[0]


def prompt_of(served: Served, messages: list[dict[str, Any]], **fields: Any) -> str:
    body = {"return_token_ids": True, **fields}
    answer = served.client().chat.completions.create(model=MODEL, messages=messages, extra_body=body)  # pyright: ignore[reportArgumentType]
    assert answer.model_extra is not None
    return served.codec.decode(answer.model_extra["prompt_token_ids"], skip_special_tokens=False)


def test_parts_of_a_message_that_goes_on_are_joined(served: Served) -> None:
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two, "}]
    messages: list[dict[str, Any]] = [*MESSAGES, {"role": "assistant", "content": parts}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt_of(served, messages, **fields).endswith("assistant: one, two, ")


def test_a_developer_is_the_system_where_the_template_does_not_know_one(serve: Serve, served: Served) -> None:
    messages = [{"role": "developer", "content": "be brief"}]
    assert prompt_of(served, messages) == "<s>system: be brief\nassistant:"
    tokenizer = train_byte_level()
    knowing = serve(FakeGenerator(), codec=TextCodec(tokenizer, ChatTemplate(DEVELOPER, {})))
    assert prompt_of(knowing, messages, max_tokens=1) == "<developer!>be brief"


def test_neutral_values_of_refused_fields_are_fine(served: Served) -> None:
    answer = served.client().chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=1,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        modalities=["text"],
        user="me",
        extra_body={"task": ""},
    )
    assert answer.choices[0].finish_reason == "length"


def test_missing_experts_are_named(served: Served) -> None:
    served.generator.missing_experts = {1: [7], 3: [2]}
    served.generator.delay_s = 0.002
    create = served.client().chat.completions.create
    assert create(model=MODEL, messages=MESSAGES, n=2).model_extra == {"manta": {"missing_experts": [2, 7]}}
    chunks = list(create(model=MODEL, messages=MESSAGES, n=2, stream=True))
    for chunk in chunks:
        ends = any(choice.finish_reason for choice in chunk.choices)
        assert chunk.model_extra == ({"manta": {"missing_experts": [2, 7]}} if ends else {})


def test_normally_no_expert_is_missing(served: Served) -> None:
    create = served.client().chat.completions.create
    assert create(model=MODEL, messages=MESSAGES).model_extra == {}
    assert all(chunk.model_extra == {} for chunk in create(model=MODEL, messages=MESSAGES, stream=True))
