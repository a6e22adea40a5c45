"""What a client can make of an ordinary chat template: bounded in length, lookups and memory."""

import json
import time
import tracemalloc
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from serving.chat_template import MAX_LOOKUPS, ChatTemplate, ChatTemplateError
from serving.fake import FakeGenerator
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve
from tests.serving.small_templates import TEMPLATES, ZEPHYR

MANY = [{"role": "assistant", "content": ""}] * 2048
TOOLS = (
    "{% for m in messages %}{% for t in tools %}{{ t.name }}{% endfor %}{% endfor %}"
    "{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}"
)

RECURSIVE = (
    "{% macro write(value) %}{% if value is iterable %}{% for each in value %}{{ write(each) }}{% endfor %}"
    "{% else %}{{ value }}{% endif %}{% endmacro %}{{ write(messages[0].content) }}"
)


def test_a_token_that_the_client_makes_long_is_not_written_for_each_message() -> None:
    """2048 messages, each followed by a megabyte, would be a text of two gigabytes."""
    template = ChatTemplate(ZEPHYR, {"eos_token": "</s>"})
    tracemalloc.start()
    with pytest.raises(ChatTemplateError, match="makes more than 1048576 characters of them; send less"):
        template.render(MANY, extra={"eos_token": "x" * 1_000_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    with pytest.raises(ChatTemplateError, match="makes more than 10 characters"):
        template.render(MANY[:1], max_chars=10)


def deep(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def test_deep_json_is_not_indented_without_end() -> None:
    """A list of 100,000 in 200 others is 800 spaces for each of its lines: 80 MB of a body of 200 KB."""
    template = ChatTemplate(TOOLS, {})
    tracemalloc.start()
    with pytest.raises(ChatTemplateError, match="makes more than 1048576 characters"):
        template.render([], extra={"tools": deep(200, [1] * 100_000)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    tools = [{"name": "one", "of": [1, {"two": "drei ü"}]}]
    text = template.render([], extra={"tools": tools})
    assert text == json.dumps(tools[0], indent=4, ensure_ascii=False)


def test_what_is_looked_up_for_each_message_ends() -> None:
    template, started_s = ChatTemplate(TOOLS, {}), time.thread_time()
    with pytest.raises(ChatTemplateError, match=f"looks up more than {MAX_LOOKUPS} names; send fewer messages"):
        template.render(MANY, extra={"tools": [{}] * 30_000})
    assert time.thread_time() - started_s < 10, "without a limit it would be minutes"


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        (RECURSIVE, deep(190, 1), "maximum recursion depth exceeded"),
        ("{{ messages[0].content.format() }}", "{0}", "out of range"),
        ("{{ messages[0].content.nothing.more }}", "a", "no attribute 'nothing'"),
        ("{{ 1 / messages[0].content }}", 0, "division by zero"),
        ("{{ messages[0].content * 9 ** 99 }}", "a", "cannot fit"),
    ],
)
def test_values_that_a_template_was_not_written_for(source: str, content: Any, said: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"refuses these messages: .*{said}"):
        ChatTemplate(source, {}).render([{"role": "user", "content": content}])


def test_one_rendering_s_limits_are_not_the_next_one_s() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}", {})
    num_renderings = MAX_LOOKUPS // len(MANY) + 2  # together they look up more than one may
    assert {template.render(MANY) for _ in range(num_renderings)} == {"".join(turn["role"] for turn in MANY)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_many_messages_as_a_request_may_have_are_rendered(name: str) -> None:
    turns = [{"role": ("user", "assistant")[place % 2], "content": "x" * 80} for place in range(2048)]
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert len(template.render(turns)) > 2048


def test_a_chat_that_a_client_makes_large_is_answered_400(serve: Serve, byte_level: Tokenizer) -> None:
    served = serve(FakeGenerator(), codec=TextCodec(byte_level, ChatTemplate(ZEPHYR, {"eos_token": "</s>"})))
    body = {"model": MODEL, "messages": MANY, "chat_template_kwargs": {"eos_token": "x" * 900_000}}
    for path in ("/v1/chat/completions", "/tokenize"):
        response = httpx.post(served.url + path, json=body, timeout=20)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "messages"
        assert "makes more than 196608 characters" in error["message"]
