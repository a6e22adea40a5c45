"""Streams of ids give the same text as decoding them all at once."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from serving.detokenizer import ByteDetokenizer, Detokenizer, NoDetokenizer, WindowDetokenizer
from serving.pieces import byte_of_char, piece_table
from serving.tokenizer import TextCodec
from tests.serving.small_tokenizers import build_metaspace, build_sentencepiece_like, train_byte_level

BYTE_LEVEL = train_byte_level()
SENTENCEPIECE = build_sentencepiece_like()
METASPACE = build_metaspace()
TEXT = st.text(alphabet=st.one_of(st.sampled_from("aeo 中é😀\u2028<>"), st.characters(exclude_categories=["Cs"])))


def byte_detokenizer(tokenizer: Tokenizer, skip: bool = True, continues: bool = False) -> ByteDetokenizer:
    table = piece_table(tokenizer)
    assert table is not None
    return ByteDetokenizer(table, skip, continues)


def stream(detokenizer: Detokenizer, ids: list[int], step: int) -> list[str]:
    deltas = [detokenizer.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*deltas, detokenizer.finish()]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 399), max_size=40), st.integers(1, 5), st.booleans())
def test_byte_level_equals_decode_for_any_ids(ids: list[int], step: int, skip: bool) -> None:
    deltas = stream(byte_detokenizer(BYTE_LEVEL, skip), ids, step)
    assert "".join(deltas) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.integers(1, 3))
@example("  two spaces first", 1)
def test_sentencepiece_equals_decode_for_any_text(text: str, step: int) -> None:
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False).ids
    deltas = stream(byte_detokenizer(SENTENCEPIECE), ids, step)
    assert "".join(deltas) == SENTENCEPIECE.decode(ids)


@settings(max_examples=200, deadline=None)
@given(TEXT)
@example("\U0003087c\u00c0")  # its fourth token ends one character and begins the next
def test_no_half_character_is_ever_shown(text: str) -> None:
    text = text.replace("\ufffd", "")
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        windows = WindowDetokenizer(tokenizer)
        for detokenizer in (byte_detokenizer(tokenizer), windows):
            assert not any("\ufffd" in delta for delta in stream(detokenizer, ids, 1))


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_windows_equal_decode_for_any_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert "".join(stream(WindowDetokenizer(BYTE_LEVEL), ids, 1)) == BYTE_LEVEL.decode(ids)


def test_windows_serve_decoders_that_look_at_several_tokens() -> None:
    tokenizer = Tokenizer(models.WordPiece({"un": 0, "##able": 1, "##s": 2, "to": 3}))
    tokenizer.decoder = decoders.WordPiece()
    assert piece_table(tokenizer) is None
    ids = [0, 1, 3, 3, 1, 2]
    assert "".join(stream(WindowDetokenizer(tokenizer), ids, 1)) == tokenizer.decode(ids)


def test_windows_do_not_wait_for_ever_for_invalid_bytes() -> None:
    lone = BYTE_LEVEL.token_to_id(next(char for char, byte in byte_of_char().items() if byte == 0x80))
    deltas = stream(WindowDetokenizer(BYTE_LEVEL), [lone] * 50, 1)
    assert "".join(deltas) == "\ufffd" * 50
    assert sum(map(bool, deltas)) > 10


def test_a_continuation_keeps_its_leading_space() -> None:
    ids = [SENTENCEPIECE.token_to_id("▁the")]
    assert byte_detokenizer(SENTENCEPIECE).push(ids) == "the"
    assert byte_detokenizer(SENTENCEPIECE, continues=True).push(ids) == " the"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, METASPACE.get_vocab_size() - 1), max_size=12), st.integers(1, 3), st.booleans())
@example([METASPACE.token_to_id("▁world")], 1, True)
@example([METASPACE.token_to_id("</s>"), METASPACE.token_to_id("▁world")], 1, True)
@example([METASPACE.token_to_id("▁"), METASPACE.token_to_id("▁world")], 1, True)
def test_windows_that_continue_a_text_equal_its_decode(ids: list[int], step: int, skip: bool) -> None:
    hello = METASPACE.token_to_id("Hello")
    deltas = stream(TextCodec(METASPACE).detokenizer(skip, continues=True), ids, step)
    assert "Hello" + "".join(deltas) == METASPACE.decode([hello, *ids], skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, METASPACE.get_vocab_size() - 1), max_size=12))
@example([METASPACE.token_to_id("▁"), METASPACE.token_to_id("</s>"), METASPACE.token_to_id("▁")])
def test_windows_that_begin_a_text_equal_its_decode(ids: list[int]) -> None:
    deltas = stream(TextCodec(METASPACE).detokenizer(), ids, 1)
    assert "".join(deltas) == METASPACE.decode(ids)


def test_added_tokens_and_ids_without_a_token() -> None:
    tokenizer = train_byte_level()
    tokenizer.add_tokens([AddedToken("hé llo", special=False), AddedToken("[X Y]", special=True)])
    for content in ("hé llo", "[X Y]"):
        ids = [tokenizer.token_to_id(content), 9999]
        for skip in (True, False):
            deltas = stream(byte_detokenizer(tokenizer, skip), ids, 1)
            assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_the_alphabet_is_the_librarys() -> None:
    assert set(byte_of_char()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = NoDetokenizer()
    assert detokenizer.push([1, 2]) + detokenizer.finish() == ""


@pytest.mark.parametrize("decoder", [decoders.BPEDecoder(), decoders.Metaspace(), decoders.Fuse(), None])
def test_unknown_decoders_have_no_table(decoder: decoders.Decoder | None) -> None:
    tokenizer = Tokenizer(models.BPE())
    if decoder is not None:
        tokenizer.decoder = decoder
    assert piece_table(tokenizer) is None


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte_level", "sentencepiece"])
def test_nothing_stands_between_special_tokens(tokenizer: Tokenizer) -> None:
    """Why `spaces_between_special_tokens` has no effect, whatever it is set to."""
    ids = [tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<s>")]
    assert "".join(stream(byte_detokenizer(tokenizer, skip=False), ids, 1)) == "<s></s><s>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s></s><s>"
