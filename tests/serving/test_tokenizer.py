"""Loading a checkpoint's tokenizer and chat template, and what templates may do."""

import asyncio
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers.utils.chat_template_utils import render_jinja_template

from serving.chat_template import ChatTemplate, ChatTemplateError
from serving.prompts import encode_prompts
from serving.settings import GatewaySettings
from serving.tokenizer import NoTokenizer, TextCodec
from serving.tokenizer_files import TokenizerError

USER = [{"role": "user", "content": "<hi> & é"}]


def test_loading_a_directory(tmp_path: Path, byte_level: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }}{{ eos_token }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    codec = TextCodec.load(tmp_path)
    ids = asyncio.run(codec.encode("hello world"))
    assert ids[0] == 0
    assert codec.decode(ids) == "hello world"  # not truncated
    assert asyncio.run(codec.encode("hello world", add_special_tokens=False)) == ids[1:]
    assert codec.chat_template is not None
    assert codec.chat_template.render(USER) == "<s></s>"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    template = TextCodec.load(tmp_path).chat_template
    assert template is not None
    assert template.render(USER) == "from the file"


def test_an_empty_directory(tmp_path: Path) -> None:
    codec = TextCodec.load(tmp_path)
    assert not codec.has_tokenizer
    assert codec.chat_template is None
    with pytest.raises(NoTokenizer, match="token ids"):
        asyncio.run(codec.encode("x"))
    with pytest.raises(NoTokenizer):
        codec.decode([1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, byte_level: Tokenizer, name: str, content: str) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        TextCodec.load(tmp_path)


def render(source: str, **options: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(USER, **options)  # pyright: ignore[reportArgumentType]


def test_what_templates_may_use() -> None:
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "<hi> & é"}]'
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert render("{% generation %}{{ bos_token }}{% endgeneration %}") == "<s>"
    assert render("{% for m in [1, 2] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}") == "1"
    assert render("{{ thinking }}", extra={"thinking": True}) == "True"
    assert render("{{ messages[0].role }}", extra={"messages": []}) == "user"
    assert render("  {% if true %}\nx{% endif %}") == "x"


def test_what_is_set_in_a_generation_block_ends_with_it() -> None:
    """As in transformers, whose block is a macro's; what is around it can be read, and a namespace changed."""
    source = (
        "{% set ns = namespace(turns=0) %}{% for m in messages %}{% generation %}{% set role = m.role %}"
        "{% set ns.turns = ns.turns + loop.index %}{{ role }}{% endgeneration %}[{{ role }}]{% endfor %}{{ ns.turns }}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    [theirs], _ = render_jinja_template([messages], chat_template=source)
    assert ChatTemplate(source, {}).render(messages) == theirs == "user[]assistant[]3"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only users') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content + 1 }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_what_templates_may_not(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="refuses"):
        render(source)


def test_continuing_the_last_message() -> None:
    source = "{% for m in messages %}[{{ m.content }}]\n{% endfor %}"
    assert render(source, continue_final_message=True) == "[<hi> & é"


def test_the_loop_goes_on_while_a_long_text_is_encoded(byte_level: Tokenizer) -> None:
    codec = TextCodec(byte_level)

    async def count_ticks() -> int:
        encoding = asyncio.create_task(codec.encode("hello world 中 " * 60_000))
        ticks = 0
        while not encoding.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(count_ticks()) > 20


def test_the_loop_goes_on_while_many_short_texts_are_encoded(byte_level: Tokenizer) -> None:
    codec, settings = TextCodec(byte_level), GatewaySettings("m", max_context=1 << 20)
    texts = ["hello world 中 " * 250] * 256

    async def count_ticks() -> int:
        encoding = asyncio.create_task(encode_prompts(texts, codec, settings, add_special_tokens=True))
        ticks = 0
        while not encoding.done():
            await asyncio.sleep(0.001)
            ticks += 1
        prompts = await encoding
        assert [prompt.text for prompt in prompts] == texts
        assert all(prompt.token_ids == byte_level.encode(texts[0]).ids for prompt in prompts)
        return ticks

    assert asyncio.run(count_ticks()) > 5
