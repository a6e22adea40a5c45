"""Special tokens in a client's text: obeyed by default, written out where the client asks for it."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from serving.chat_template import ChatTemplate
from serving.fake import FakeGenerator
from serving.splitting import Marks, SplittingTokenizer
from serving.tokenizer import TextCodec
from tests.serving.conftest import MODEL, Serve
from tests.serving.small_templates import CHATML, TEMPLATES
from tests.serving.small_tokenizers import build_sentencepiece_like, train_byte_level

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZERS = {"byte_level": train_byte_level(), "sentencepiece": build_sentencepiece_like()}
TEXTS = st.lists(st.sampled_from(["<s>", "</s>", "<", "/s>", " ", "lo", "é", "w", "\n", "<|user|>"]), max_size=8).map(
    "".join
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, add=st.booleans())
def test_a_prompt_as_transformers_splits_it(name: str, text: str, add: bool) -> None:
    theirs: Any = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[name], **SPECIAL)
    wanted = theirs(text, split_special_tokens=True, add_special_tokens=add)["input_ids"]
    assert SplittingTokenizer(TOKENIZERS[name]).encode(text, add) == wanted


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=3), template=st.sampled_from(["mixtral", "chatml", "llama", "zephyr"])
)
def test_a_chat_has_the_control_tokens_of_its_template_alone(name: str, texts: list[str], template: str) -> None:
    tokenizer = TOKENIZERS[name]
    splitting, source = SplittingTokenizer(tokenizer), ChatTemplate(TEMPLATES[template], SPECIAL)
    messages = [{"role": "user", "content": text} for text in texts]
    marks = splitting.marks()
    marked = marks.take(source.render([{**m, "content": marks.put(m["content"])} for m in messages]))
    assert marked.text == source.render(messages)
    ids = splitting.encode_marked(marked, add_special_tokens=False)
    harmless = source.render([{**m, "content": "w"} for m in messages])
    special = {tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<|user|>")}
    controls = [
        token_id for token_id in tokenizer.encode(harmless, add_special_tokens=False).ids if token_id in special
    ]
    assert [token_id for token_id in ids if token_id in special] == controls
    if not marked.spans:
        assert ids == tokenizer.encode(marked.text, add_special_tokens=False).ids
    elif name == "byte_level":
        assert tokenizer.decode(ids, skip_special_tokens=False) == marked.text


def test_a_special_token_is_encoded_by_itself() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    splitting = SplittingTokenizer(tokenizer)
    marks = splitting.marks()
    marked = marks.take(f"</s>{marks.put('hello</s>hello')}</s>")
    hello, [eos] = tokenizer.encode("hello").ids, tokenizer.encode("</s>").ids
    written = splitting.encode("</s>", add_special_tokens=False)
    assert eos not in written
    assert splitting.encode_marked(marked, False) == [eos, *hello, *written, *hello, eos]


def test_a_special_token_anywhere_in_a_message_is_the_client_s(serve: Serve, byte_level: Tokenizer) -> None:
    """Templates write other keys of a message too, and what is in those."""
    template = "{% for m in messages %}{{ m.content }}{{ m.deep | tojson }}{% endfor %}{{ eos_token }}"
    served = serve(FakeGenerator(), codec=TextCodec(byte_level, ChatTemplate(template, SPECIAL)))
    messages = [{"role": "user", "content": "a", "deep": [1, None, {"</s>": {"b": ["</s>", True]}}]}]
    body = {"model": MODEL, "messages": messages}
    for split, num in ((False, 3), (True, 1)):
        answer = httpx.post(f"{served.url}/tokenize", json=body | {"split_special_tokens": split}).json()
        assert answer["tokens"].count(1) == num
        text = served.codec.decode(answer["tokens"], skip_special_tokens=False)
        assert text == 'a[1, null, {"</s>": {"b": ["</s>", true]}}]</s>'


def test_a_template_that_changes_marks_is_refused() -> None:
    marks = Marks(["</s>"])
    with pytest.raises(ValueError, match="cannot be split"):
        marks.take(marks.put("a</s>b").lower())


@pytest.fixture
def codec(byte_level: Tokenizer) -> TextCodec:
    return TextCodec(byte_level, ChatTemplate(CHATML, SPECIAL))


def test_both_endpoints_and_tokenize(serve: Serve, codec: TextCodec) -> None:
    served = serve(FakeGenerator(), codec=codec)
    prompt = "hi</s><s>"
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}], "name": "</s>"}]
    for path, body in (
        ("/v1/completions", {"prompt": prompt}),
        ("/v1/chat/completions", {"messages": messages}),
    ):
        for split in (False, True):
            body |= {"model": MODEL, "max_tokens": 1, "split_special_tokens": split, "return_token_ids": True}
            answer = httpx.post(served.url + path, json=body, timeout=20).json()
            ids = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
            assert (1 in ids) == (not split)
            assert prompt in served.codec.decode(ids, skip_special_tokens=False)
            shown = {key: body[key] for key in ("prompt", "messages", "split_special_tokens") if key in body}
            assert httpx.post(served.url + "/tokenize", json=shown).json()["tokens"] == ids
