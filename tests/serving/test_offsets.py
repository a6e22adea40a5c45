"""`text_offset` points into the text that the client gets."""

import asyncio
import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, processors

from serving.beside import THREAD_FROM_TOKENS
from serving.offsets import OutputOffsets, echoed_offsets, prompt_offsets
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


def test_what_follows_an_unfinished_character_begins_after_it() -> None:
    """There is U+FFFD in its place."""
    codec = TextCodec(BYTE_LEVEL)
    ids = [BYTE_LEVEL.token_to_id(char) for char in ("a", "Ã", "x", "Ã", "Ã", "©")]  # the first byte of é twice alone
    assert OutputOffsets(codec.detokenizer(continues=True)).push(ids) == [0, 1, 2, 3, 4, 4]
    assert prompt_offsets(Prompt(ids, codec.decode(ids)), codec, True) == [0, 1, 2, 3, 4, 4]
    spelled = [BYTE_LEVEL.token_to_id(char) for char in ("ï", "¿", "½", "x")]  # U+FFFD itself
    assert OutputOffsets(codec.detokenizer(continues=True)).push(spelled) == [0, 0, 0, 1]


def test_a_special_token_is_counted_by_the_name_that_the_client_wrote() -> None:
    """Of byte-level tokens its characters would be bytes, and no UTF-8 at that."""
    tokenizer = train_byte_level()
    tokenizer.add_special_tokens(["<|début|>"])
    found = offsets_of(with_added(tokenizer), tokenizer, "x<|début|>z")
    assert (found["x"], found["<|début|>"], found["z"], found["</s>"]) == ([0], [1], [10], [11])


def test_a_normalizer_that_makes_the_text_longer_leads_to_no_offset_beyond_its_end() -> None:
    tokenizer = train_byte_level()
    tokenizer.normalizer = normalizers.Replace("ab", "xyzxyzxyz")
    codec = TextCodec(tokenizer)
    ids = tokenizer.encode("ab").ids
    assert max(prompt_offsets(Prompt(ids, "ab"), codec, True)) == 2


def test_long_prompts_are_gone_through_beside_the_event_loop() -> None:
    a, ids = BYTE_LEVEL.token_to_id("a"), [threading.get_ident()]

    class Noting(TextCodec):
        def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
            ids.append(threading.get_ident())
            return super().decode(token_ids, skip_special_tokens)

    for num in (2, THREAD_FROM_TOKENS):
        prompt = Prompt([a] * num, "a" * num)
        found = asyncio.run(echoed_offsets([prompt], Noting(BYTE_LEVEL), skip_special_tokens=True))
        assert found == [list(range(num))]
    here, short, long = ids
    assert short == here != long


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


def test_without_a_text_there_is_nothing_to_point_into() -> None:
    assert prompt_offsets(Prompt([5, 6]), TextCodec(None), True) == [0, 0]
    assert prompt_offsets(Prompt([5, 6]), TextCodec(BYTE_LEVEL), True) == [0, 0]
