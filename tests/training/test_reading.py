"""Pieces of sources, read in turn, are the sources' documents in turn."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import pieces
from training.data_errors import SourceError
from training.documents import Document
from training.json_lines import read_lines
from training.pieces import Piece, cut, read_documents
from training.sources import Source, list_files


def read_all(*sources: Source) -> list[Document]:
    its_pieces = cut(sources, [list_files(source) for source in sources])
    travelled = [Piece.from_json(piece.to_json()) for piece in its_pieces]
    assert travelled == its_pieces
    return [document for piece in travelled for document in read_documents(piece, sources[piece.source])]


def texts(*sources: Source) -> list[str]:
    return [document.text for document in read_all(*sources)]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MIN_PIECE_BYTES", 64)


def test_text_files_are_documents_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffümlaut\r\n".encode())
    (tmp_path / "b.txt").write_bytes(b"")
    for number in range(30):
        (tmp_path / f"c{number:02}.txt").write_text(f"text {number}")
    source = Source(str(tmp_path), task="letters")
    assert texts(source) == ["ümlaut\r\n", "", *(f"text {number}" for number in range(30))]
    assert {document.task for document in read_all(source)} == {"letters"}
    assert len(cut([source], [list_files(source)])) > 2


def test_small_files_share_a_piece_and_other_formats_come_between(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "d.txt"):
        (tmp_path / name).write_text(name)
    write_rows(tmp_path / "c.jsonl", [{"text": "c"}])
    source = Source(str(tmp_path))
    assert [len(piece.paths) for piece in cut([source], [list_files(source)])] == [2, 1, 1]
    assert texts(source) == ["a.txt", "b.txt", "c", "d.txt"]


def test_rows_of_large_files_are_cut_and_stay_in_order(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {number}", "kind": number % 3} for number in range(300)]
    write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=7)
    for name in ("a.jsonl", "b.parquet"):
        source = Source(str(tmp_path / name), task_column="kind")
        documents = read_all(source)
        assert [document.text for document in documents] == [row["text"] for row in rows]
        assert [document.task for document in documents] == [str(row["kind"]) for row in rows]
        assert documents[250].where() == f"{source.path}, {'line' if name == 'a.jsonl' else 'row'} 251"
        assert len(cut([source], [list_files(source)])) > 5


@given(
    lines=st.lists(st.sampled_from(['{"text": "a"}', '{"text": "longer ü"}', "", "  "]), max_size=8),
    end=st.sampled_from(["", "\n", "\r\n"]),
    step=st.integers(1, 30),
)
def test_ranges_of_bytes_have_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, step: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(("\n".join(lines) + end).encode())
    size = path.stat().st_size
    found = [
        document.text
        for start in range(0, size, step)
        for document in read_lines(str(path), start, min(start + step, size), Source(str(path)))
    ]
    assert found == [json.loads(line)["text"] for line in lines if line.strip()]


def test_a_mark_of_utf8_at_the_start_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\n')
    assert texts(Source(str(tmp_path))) == ["a"]


def test_dictionary_and_large_columns_are_text(tmp_path: Path) -> None:
    columns = {"text": pa.array(["a", "b"], pa.large_string()), "kind": pa.array(["x", "x"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    documents = read_all(Source(str(tmp_path), task_column="kind"))
    assert [(document.text, document.task) for document in documents] == [("a", "x"), ("b", "x")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: is not JSON"),
        ("[1]", "line 2: holds list, not an object"),
        ('{"body": "x", "id": 1}', r"line 2: there is no column 'text' \(found: body, id\)"),
        ('{"text": 3}', r"line 2: column 'text' holds int \(3\), not text"),
        ('{"text": null}', "line 2: column 'text' holds nothing, not text"),
        ('{"text": "a", "more": ' + "[" * 100_000, "line 2: nests its values too deeply"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(SourceError, match=f"a.jsonl, {message}"):
        read_all(Source(str(tmp_path)))


@pytest.mark.parametrize("task", [None, "", " \t", 1.5, True, ["a"]])
def test_bad_tasks(tmp_path: Path, task: object) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "a", "kind": task}])
    with pytest.raises(SourceError, match="a.jsonl, line 1: column 'kind' holds .*, not the name of a task"):
        read_all(Source(str(tmp_path), task_column="kind"))


def test_a_task_that_no_file_could_name(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"text": "a", "kind": "half a pair: \ud800"}])
    with pytest.raises(SourceError, match="a.jsonl, line 1: is not UTF-8 text .surrogates"):
        read_all(Source(source.path, task_column="kind"))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(SourceError, match=r"a.txt: is not UTF-8 text at byte 3 .*convert it to UTF-8"):
        read_all(Source(str(tmp_path)))
    (tmp_path / "a.txt").rename(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match="a.jsonl, line 1: is not UTF-8"):
        read_all(Source(str(tmp_path)))
    (tmp_path / "a.jsonl").rename(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="a.parquet: cannot be read"):
        read_all(Source(str(tmp_path)))


def test_a_file_that_went_away(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
        source = Source(str(tmp_path))
        its_pieces = cut([source], [list_files(source)])
        (tmp_path / name).unlink()
        with pytest.raises(SourceError, match=f"{name}: cannot be read .*every host must see it"):
            list(read_documents(its_pieces[0], source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"column": "body"}, r"a.parquet: there is no column 'body' \(found: text, id, at\); name one"),
        ({"column": "id"}, "a.parquet: column 'id' is of type int64, not text"),
        ({"task_column": "at"}, "a.parquet: column 'at' is of type double, not text or whole numbers"),
    ],
)
def test_bad_columns_of_parquet_are_told_before_anything_is_read(
    tmp_path: Path, source: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [1], "at": [1.5]}), tmp_path / "a.parquet")
    bad = Source(str(tmp_path), **source)
    with pytest.raises(SourceError, match=message):
        cut([bad], [list_files(bad)])


def test_rows_of_parquet_without_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="a.parquet, row 2: column 'text' holds nothing"):
        read_all(Source(str(tmp_path)))


def test_columns_of_parquet_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="a.parquet: there are several columns 'text'; rename"):
        read_all(Source(str(tmp_path)))


def test_rows_of_parquet_that_are_said_to_be_text_and_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["fine", "marker"]}), path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"marker", b"mar\xffer"))
    with pytest.raises(SourceError, match="a.parquet, rows 1 to 2: is not UTF-8 text"):
        read_all(Source(str(tmp_path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_row_as_long_as_no_document(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.documents.MAX_DOCUMENT_BYTES", 64)
    for text, fits in (("é" * 32, True), ("é" * 33, False)):
        if name == "a.jsonl":
            write_rows(tmp_path / name, [{"text": text}])
        else:
            pq.write_table(pa.table({"text": [text]}), tmp_path / name)
        if fits:
            assert texts(Source(str(tmp_path))) == [text]
        else:
            with pytest.raises(SourceError, match=f"{name}, (line|row) 1: a document may have"):
                texts(Source(str(tmp_path)))
