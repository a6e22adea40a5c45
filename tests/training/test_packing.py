"""Packed samples, against a packer that goes token by token."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.small_data import EOS_ID, make_store
from training.data_errors import StoreError
from training.packing import NO_LABEL, Batch, PackedData
from training.tokens import TokenStore

DOCUMENTS = st.lists(st.lists(st.integers(2, 99), max_size=12).map(lambda ids: [*ids, EOS_ID]), min_size=1, max_size=12)


def packed_by_hand(
    documents: list[list[int]], tasks: list[str], length: int, separate: bool
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
    """Ids, labels, positions and task of every sample."""
    ids, labels, positions, of_task = list[list[int]](), list[list[int]](), list[list[int]](), list[int]()
    for number, name in enumerate(sorted(set(tasks)) or [None]):
        chosen = [index for index in range(len(documents)) if name is None or tasks[index] == name]
        line = [(token, index) for index in chosen for token in documents[index]]
        for start in range(0, len(line) - 1, length):
            spanned = [*line[start : start + length + 1]]
            spanned += [(EOS_ID, -1)] * (length + 1 - len(spanned))
            ids.append([token for token, _ in spanned[:-1]])
            labels.append([])
            positions.append([])
            for place in range(length):
                (_, before), (token, after) = spanned[place], spanned[place + 1]
                labels[-1].append(NO_LABEL if after == -1 or (separate and after != before) else token)
                fresh = place == 0 or (separate and before != spanned[place - 1][1])
                positions[-1].append(0 if fresh else positions[-1][-1] + 1)
            of_task.append(number)
    return ids, labels, positions, of_task


def everything(data: PackedData) -> Batch:
    return data.batch(np.arange(data.num_samples))


@given(documents=DOCUMENTS, length=st.integers(1, 17), separate=st.booleans(), draw=st.data())
def test_samples_are_what_a_packer_by_hand_makes(
    documents: list[list[int]], length: int, separate: bool, draw: st.DataObject
) -> None:
    names = st.lists(st.sampled_from("abc"), min_size=len(documents), max_size=len(documents))
    tasks = draw.draw(st.one_of(st.just([]), names))
    ids, labels, positions, of_task = packed_by_hand(documents, tasks, length, separate)
    with tempfile.TemporaryDirectory() as directory:
        store = make_store(Path(directory), documents, tasks)
        if not ids:
            with pytest.raises(StoreError, match="no second token"):
                PackedData(store, length, separate)
            return
        data = PackedData(store, length, separate)
        batch = everything(data)
        chosen = np.array(draw.draw(st.lists(st.integers(0, data.num_samples - 1), max_size=5)), np.int64)
        some = data.batch(chosen)
    assert data.num_samples == len(ids)
    assert batch.ids_BL.tolist() == ids
    assert batch.labels_BL.tolist() == labels
    assert batch.positions_BL.tolist() == positions
    assert batch.tasks_B.tolist() == of_task
    for name in ("ids_BL", "labels_BL", "positions_BL", "tasks_B"):
        assert getattr(batch, name).dtype == np.int64
        assert np.array_equal(getattr(some, name), getattr(batch, name)[chosen])


@pytest.fixture
def example(tmp_path: Path) -> TokenStore:
    """`a b c .` and `d e .`, as in the module's docstring."""
    return make_store(tmp_path, [[10, 11, 12, EOS_ID], [13, 14, EOS_ID]])


def test_the_example(example: TokenStore) -> None:
    data = PackedData(example, 4)
    batch = everything(data)
    assert batch.ids_BL.tolist() == [[10, 11, 12, EOS_ID], [13, 14, EOS_ID, EOS_ID]]
    assert batch.labels_BL.tolist() == [[11, 12, EOS_ID, -1], [14, EOS_ID, -1, -1]]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert data.num_padding == 1


def test_documents_together(example: TokenStore) -> None:
    batch = everything(PackedData(example, 4, separate_documents=False))
    assert batch.labels_BL.tolist() == [[11, 12, EOS_ID, 13], [14, EOS_ID, -1, -1]]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


@given(documents=DOCUMENTS, length=st.integers(1, 17))
def test_every_token_but_a_tasks_first_is_learnt_once(documents: list[list[int]], length: int) -> None:
    line = [token for document in documents for token in document]
    if len(line) < 2:
        return
    with tempfile.TemporaryDirectory() as directory:
        data = PackedData(make_store(Path(directory), documents), length, separate_documents=False)
        batch = everything(data)
    assert batch.labels_BL[batch.labels_BL != NO_LABEL].tolist() == line[1:]
    assert batch.ids_BL.ravel()[: len(line) - 1].tolist() == line[:-1]
    assert data.num_padding == max(data.num_samples * length - len(line), 0)


def test_large_ids_are_not_cut(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[69_999, 65_536, EOS_ID]], vocab_size=70_000)
    assert everything(PackedData(store, 2)).ids_BL.tolist() == [[69_999, 65_536]]


def test_no_samples_make_an_empty_batch(example: TokenStore) -> None:
    assert PackedData(example, 4).batch(np.empty(0, np.int64)).ids_BL.shape == (0, 4)
