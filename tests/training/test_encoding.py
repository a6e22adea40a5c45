"""Text to ids, and the tables in which they travel."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_data import BOS_ID, EOS_ID, VOCABULARY, make_tokenizer
from training import encoded
from training.data_errors import DataError, EncodingError, SourceError
from training.documents import Document
from training.encoded import decode_table, encode_documents, is_held_out
from training.encoding import Encoder, load_encoder
from training.origin import origin_of
from training.sources import Source, SourceFile


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return load_encoder(make_tokenizer(tmp_path), VOCABULARY)


def document(text: str, task: str | None = None) -> Document:
    return Document(text, task, lambda: "the file, line 3")


def test_a_document_has_the_tokenizers_start_and_an_end(encoder: Encoder) -> None:
    first, second = encoder.encode(["ab", "b"])
    assert (first[0], first[-1], len(first)) == (BOS_ID, EOS_ID, 4)
    assert second == [BOS_ID, first[2], EOS_ID]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_start_is_what_prompts_have(tmp_path: Path, adds_bos: bool) -> None:
    """tokenizer.json decides, as when it is served: `add_bos_token` beside one has no effect in transformers."""
    encoder = load_encoder(make_tokenizer(tmp_path, adds_bos, add_bos_token=not adds_bos), VOCABULARY)
    [ids] = encoder.encode(["a"])
    assert ids.count(BOS_ID) == adds_bos
    assert ids.count(EOS_ID) == 1


def test_the_end_comes_from_either_configuration(tmp_path: Path) -> None:
    directory = make_tokenizer(tmp_path, eos_token={"__type": "AddedToken", "content": "</s>", "special": True})
    assert load_encoder(directory, VOCABULARY).eos_id == EOS_ID
    make_tokenizer(tmp_path, eos_token=None)
    with pytest.raises(EncodingError, match="names no end-of-sequence token.*set eos_token in tokenizer_config.json"):
        load_encoder(directory, VOCABULARY)
    for found in (7, [7, 8]):
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": found}))
        assert load_encoder(directory, VOCABULARY).eos_id == 7
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert load_encoder(directory, VOCABULARY).eos_id == 9  # as when it is served
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "nine"}))
    with pytest.raises(EncodingError, match=r"generation_config\.json: eos_token_id is"):
        load_encoder(directory, VOCABULARY)


def test_a_truncation_that_the_file_brings_along_is_off(tmp_path: Path) -> None:
    fields = json.loads((make_tokenizer(tmp_path) / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert len(load_encoder(tmp_path, VOCABULARY).encode(["a" * 50])[0]) == 52


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="has no tokenizer; name a directory with a tokenizer.json"):
        load_encoder(tmp_path, VOCABULARY)
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(EncodingError, match="tokenizer_config.json: the file is not valid JSON"):
        load_encoder(tmp_path, VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EncodingError, match="tokenizer.json is not a tokenizer"):
        load_encoder(tmp_path, VOCABULARY)


def test_documents_travel_whole_and_in_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "GROUP_CHARACTERS", 10)
    texts = ["one", "two ü", "", " \n", "a text that is longer than a group", "six"]
    tables = list(encode_documents([document(text, "task") for text in texts], encoder, 0.5))
    assert len(tables) > 2
    parts = [decode_table(table) for table in tables]
    written = [text for text in texts if text.strip()]
    ids = encoder.encode(written)
    assert np.concatenate([part.ids_N for part in parts]).tolist() == list(chain(*ids))
    assert np.concatenate([part.lengths for part in parts]).tolist() == [len(each) for each in ids]
    assert [task for part in parts for task in part.tasks] == ["task"] * 4
    assert sum(part.num_blank for part in parts) == 2
    held_out = np.concatenate([part.held_out for part in parts]).tolist()
    assert held_out == [is_held_out(text, 0.5) for text in written]


def test_some_of_the_documents(encoder: Encoder) -> None:
    [table] = encode_documents([document(text, text) for text in ("a", "bcd", "ef")], encoder, 0)
    some = decode_table(table).select(np.array([True, False, True]))
    assert some.ids_N.tolist() == list(chain(*encoder.encode(["a", "ef"])))
    assert (some.lengths.tolist(), some.tasks) == ([3, 4], ["a", "ef"])


def test_an_error_travels_at_the_end(encoder: Encoder) -> None:
    def documents() -> Iterator[Document]:
        yield document("fine")
        raise SourceError("file x: broken")

    *_, table = encode_documents(documents(), encoder, 0)
    with pytest.raises(DataError, match="file x: broken"):
        decode_table(table)


def test_half_a_surrogate_pair_is_no_text(encoder: Encoder) -> None:
    [table] = encode_documents([document("\ud800")], encoder, 0)
    with pytest.raises(DataError, match="line 3: is not UTF-8 text .*surrogates not allowed"):
        decode_table(table)


def test_ids_that_the_model_lacks(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    with pytest.raises(
        EncodingError, match="tokenizer.json: its token '.*' has id .*beyond the model's vocabulary of 9"
    ):
        load_encoder(tmp_path, 9)
    small = load_encoder(tmp_path, VOCABULARY - 1)
    [table] = encode_documents([document("a"), document("\xad")], small, 0)  # a byte of it is the last of the alphabet
    with pytest.raises(
        DataError, match="the file, line 3: its token '.' has id 257, beyond the model's vocabulary of 257"
    ):
        decode_table(table)


def test_a_share_of_the_texts_is_held_out() -> None:
    texts = [f"text {number}" for number in range(4000)]
    small, large = ({text for text in texts if is_held_out(text, share)} for share in (0.1, 0.4))
    assert small < large
    assert 300 < len(small) < 500
    assert not any(is_held_out(text, 0) for text in texts)
    assert [number for number in range(12) if is_held_out(f"text {number}", 0.25)] == [
        6,
        7,
    ]  # the same everywhere, for ever


def test_a_fingerprint_tells_all_that_the_tokens_depend_on(encoder: Encoder, tmp_path: Path) -> None:
    source, file = Source("x"), SourceFile("x", "text", 3, 4)
    other = load_encoder(make_tokenizer(tmp_path / "other", adds_bos=False), VOCABULARY)
    origins = [
        origin_of([source], [[file]], encoder, 0),
        origin_of([source], [[file]], encoder, 0.1),
        origin_of([source], [[file]], other, 0),
        origin_of([source], [[SourceFile("x", "text", 3, 5)]], encoder, 0),
        origin_of([source], [[SourceFile("x", "text", 4, 4)]], encoder, 0),
        origin_of([source], [[file, file]], encoder, 0),
        origin_of([source, source], [[file], [file]], encoder, 0),
        origin_of([Source("x", task="a")], [[file]], encoder, 0),
    ]
    assert len({origin.fingerprint for origin in origins}) == len(origins)
    assert origin_of([source], [[file]], encoder, 0) == origins[0]
