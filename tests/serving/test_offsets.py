"""`text_offset` points into the text that the client gets."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from serving.offsets import OutputOffsets, prompt_offsets
from serving.prompts import Prompt
from serving.tokenizer import TextCodec
from tests.serving.small_tokenizers import build_metaspace, build_sentencepiece_like, train_byte_level


def with_added(tokenizer: Tokenizer) -> TextCodec:
    """One that adds <s> and </s> to every text."""
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return TextCodec(tokenizer)


BYTE_LEVEL = train_byte_level()
CODECS = [with_added(make()) for make in (train_byte_level, build_sentencepiece_like, build_metaspace)]


def offsets_of(codec: TextCodec, tokenizer: Tokenizer, text: str, skip: bool = True) -> dict[str, list[int]]:
    ids = tokenizer.encode(text).ids
    found: dict[str, list[int]] = {}
    for token_id, offset in zip(ids, prompt_offsets(Prompt(ids, text), codec, skip), strict=True):
        found.setdefault(codec.token_name(token_id), []).append(offset)
    return found


def test_both_bytes_of_a_character_begin_where_it_does() -> None:
    codec = TextCodec(BYTE_LEVEL)
    ids = [BYTE_LEVEL.token_to_id(char) for char in ("Ã", "©", "a")]  # é
    assert OutputOffsets(codec.detokenizer(continues=True)).push(ids) == [0, 0, 1]
    assert prompt_offsets(Prompt(ids, "éa"), codec, True) == [0, 0, 1]


def test_an_output_goes_on_where_the_echo_ends_and_special_tokens_have_no_length() -> None:
    offsets = OutputOffsets(TextCodec(BYTE_LEVEL).detokenizer(continues=True), 5)
    a = BYTE_LEVEL.token_to_id("a")
    assert offsets.push([a, 1, a]) == [5, 6, 6]
    assert offsets.push([a]) == [7]


@pytest.mark.parametrize("skip", [True, False])
def test_what_the_tokenizer_adds_is_not_in_the_echoed_text(skip: bool) -> None:
    tokenizer = build_sentencepiece_like()
    codec = with_added(tokenizer)
    assert offsets_of(codec, tokenizer, "he", skip) == {"<s>": [0], "▁": [0], "h": [0], "e": [1], "</s>": [2]}


def test_special_tokens_that_the_client_wrote_are() -> None:
    tokenizer = train_byte_level()
    codec = with_added(tokenizer)
    found = offsets_of(codec, tokenizer, "x<|user|>z")
    assert (found["<s>"], found["<|user|>"], found["z"], found["</s>"]) == ([0], [1], [9], [10])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_ids_are_echoed_as_they_are_decoded(codec: TextCodec, skip: bool) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, 13), max_size=12))
    def check(ids: list[int]) -> None:
        text = codec.decode(ids, skip)
        offsets = prompt_offsets(Prompt(ids, text), codec, skip)
        spans = [text[start:end] for start, end in pairwise([*offsets, len(text)])]
        assert "".join(spans) == text
        assert all(not span for i, span in zip(ids, spans, strict=True) if skip and i in codec.special_ids)

    check()


def test_without_a_tokenizer_there_is_no_text_to_point_into() -> None:
    assert prompt_offsets(Prompt([5, 6]), TextCodec(None), True) == [0, 0]
