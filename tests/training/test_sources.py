"""Which files a source stands for."""

import os
from pathlib import Path

import pytest

from training.data_errors import SourceError
from training.sources import MAX_DOCUMENT_BYTES, Source, list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/z.txt", "a/y/x.MD", "c.jsonl", "d.parquet", ".hidden.txt", ".git/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    return tmp_path


def listed(source: Source, folder: Path) -> list[tuple[str, str]]:
    return [(Path(file.path).relative_to(folder).as_posix(), file.format) for file in list_files(source)]


def test_a_folder_is_read_recursively_in_the_order_of_paths(folder: Path) -> None:
    assert listed(Source(str(folder)), folder) == [
        ("a/y/x.MD", "text"),
        ("a/z.txt", "text"),
        ("b.txt", "text"),
        ("c.jsonl", "jsonl"),
        ("d.parquet", "parquet"),
    ]


def test_a_glob_chooses_files(folder: Path) -> None:
    assert [name for name, _ in listed(Source(f"{folder}/**/*.txt"), folder)] == ["a/z.txt", "b.txt"]
    assert [name for name, _ in listed(Source(f"{folder}/*.txt"), folder)] == ["b.txt"]


def test_a_named_format_goes_before_the_suffix(folder: Path) -> None:
    assert listed(Source(str(folder / "c.jsonl"), format="text"), folder) == [("c.jsonl", "text")]


def test_a_name_with_the_signs_of_a_glob_is_found_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("text")
    assert listed(Source(str(tmp_path / "a[1].txt")), tmp_path) == [("a[1].txt", "text")]


def test_sizes_and_times_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("four")
    [file] = list_files(Source(str(path)))
    assert (file.num_bytes, file.mtime_ns) == (4, path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such file or folder; correct the path"),
        ("*.nothing", "no file matches; hidden ones do not count"),
        ("empty", "the folder holds no files"),
        ("odd", r"no format is known by its suffix '.csv' \(known: .txt, .*set the source's format"),
        ("links", "is a link to a folder, which is not followed"),
        ("packed", "a.jsonl.gz: is compressed, and not read so; unpack it"),
        ("dangling.txt", "dangling.txt: cannot be read .*; repair or remove it"),
    ],
)
def test_what_is_not_there(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "table.csv").write_text("a,b")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(tmp_path / "odd")
    with pytest.raises(SourceError, match=message):
        list_files(Source(str(tmp_path / name)))


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_what_is_no_file_is_neither_waited_for_nor_passed_over(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / f"zeros.{suffix}").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / f"pipe.{suffix}", tmp_path / "device"):
        with pytest.raises(SourceError, match=rf"\.{suffix}: is a pipe, a socket or a device; write"):
            list_files(Source(str(path)))


def test_a_text_that_no_memory_would_hold_is_told_before_it_is_read(tmp_path: Path) -> None:
    """A corpus in one file is common; JSON lines of any size are read in parts."""
    for name in ("corpus.txt", "corpus.jsonl"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_DOCUMENT_BYTES + 1)
    assert len(list_files(Source(str(tmp_path / "corpus.jsonl")))) == 1
    with pytest.raises(SourceError, match=r"corpus.txt: a document may have 67108864 bytes.*`split -C 16m --addit"):
        list_files(Source(str(tmp_path)))
    os.truncate(tmp_path / "corpus.txt", MAX_DOCUMENT_BYTES)
    assert len(list_files(Source(str(tmp_path)))) == 2


def test_what_a_source_cannot_be() -> None:
    with pytest.raises(SourceError, match="unknown format 'csv'; use one of auto, text, jsonl, parquet"):
        Source("x", format="csv")
    with pytest.raises(SourceError, match="task 'a' and task_column 'b'"):
        Source("x", task="a", task_column="b")
    with pytest.raises(SourceError, match="is empty"):
        Source("x", task=" ")
    with pytest.raises(SourceError, match="is a URL"):
        list_files(Source("s3://bucket/x.txt"))
