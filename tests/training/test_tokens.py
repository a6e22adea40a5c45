"""Token stores on disk."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.training.small_data import make_origin, make_store
from training.data_errors import StoreError
from training.tokens import TokenStore, TokenWriter, token_type

DOCUMENTS = [[5, 6, 1], [7, 1], [8, 9, 10, 1]]


@pytest.mark.parametrize(("vocab_size", "size"), [(100, 2), (65536, 2), (65537, 4)])
def test_ids_take_as_many_bytes_as_the_vocabulary_needs(tmp_path: Path, vocab_size: int, size: int) -> None:
    documents = [[vocab_size - 1, 1], [3]]
    store = make_store(tmp_path, documents, vocab_size=vocab_size)
    assert token_type(vocab_size).itemsize == size == (tmp_path / "tokens.bin").stat().st_size // 3
    assert [store.document(index).tolist() for index in range(2)] == documents


def test_a_store_is_found_again_as_it_was_written(tmp_path: Path) -> None:
    written = make_store(tmp_path, DOCUMENTS)
    store = TokenStore.open(tmp_path)
    assert store.info == written.info
    assert store.info.origin == make_origin()
    assert (store.info.num_documents, store.info.num_tokens, store.info.task_names) == (3, 9, ())
    assert [store.document(index).tolist() for index in range(3)] == DOCUMENTS
    assert store.tasks is None


def test_tasks_are_numbered_by_their_sorted_names(tmp_path: Path) -> None:
    store = make_store(tmp_path, DOCUMENTS, tasks=["poems", "code", "poems"])
    assert store.info.task_names == ("code", "poems")
    assert store.tasks is not None
    assert store.tasks.tolist() == [1, 0, 1]


def test_tasks_may_be_numbered_by_more_names_than_are_there(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, 100, with_tasks=True)
    writer.write(np.array([3, 1], np.uint32), np.array([2]), ["b"])
    store = writer.finish(make_origin(), ["a", "b", "c"])
    assert store.tasks is not None
    assert (store.info.task_names, store.tasks.tolist()) == (("a", "b", "c"), [1])


def test_many_documents_at_once_are_the_same_as_one_by_one(tmp_path: Path) -> None:
    make_store(tmp_path / "single", DOCUMENTS)
    writer = TokenWriter(tmp_path / "together", 100)
    writer.write(np.array(list(chain(*DOCUMENTS)), np.uint32), np.array([3, 2, 4]))
    writer.finish(make_origin())
    for name in ("tokens.bin", "offsets.bin", "store.json"):
        assert (tmp_path / "single" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_what_is_not_finished_is_no_store(tmp_path: Path) -> None:
    make_store(tmp_path, DOCUMENTS)
    writer = TokenWriter(tmp_path, 100)
    writer.write(np.array([3, 1], np.uint32), np.array([2]))
    writer.close()
    with pytest.raises(StoreError, match="holds no store.json, so it is no whole token store. Remove the folder"):
        TokenStore.open(tmp_path)


def test_a_store_without_documents_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no documents"):
        TokenWriter(tmp_path, 100).finish(make_origin())


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "tasks.bin"])
def test_a_file_that_was_cut_off_is_noticed(tmp_path: Path, name: str) -> None:
    make_store(tmp_path, DOCUMENTS, tasks=["a", "b", "a"])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=rf"{name}: has {len(whole) - 1} bytes, and store.json says {len(whole)}"):
        TokenStore.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: is missing"):
        TokenStore.open(tmp_path)


def test_offsets_of_another_store_are_noticed(tmp_path: Path) -> None:
    make_store(tmp_path, DOCUMENTS)
    np.array([0, 3, 5, 8], np.int64).tofile(tmp_path / "offsets.bin")
    with pytest.raises(StoreError, match="does not span the 9 tokens"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not what Manta writes"),
        ("[]", "is not what Manta writes"),
        ('{"format_version": 1}', "is not what Manta writes"),
        ('{"format_version": 9}', "is of format 9, and this release reads 1"),
    ],
)
def test_a_store_json_of_something_else_is_noticed(tmp_path: Path, text: str, message: str) -> None:
    make_store(tmp_path, DOCUMENTS)
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        TokenStore.open(tmp_path)


def test_store_json_can_be_read_by_people(tmp_path: Path) -> None:
    make_store(tmp_path, DOCUMENTS)
    fields = json.loads((tmp_path / "store.json").read_text())
    assert fields["format_version"] == 1
    assert fields["origin"]["sources"] == [{"path": "texts"}]
