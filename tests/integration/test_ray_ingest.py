"""Sources become token stores through Ray Data, the same ones each time."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.small_data import VOCABULARY, make_tokenizer
from training.data_errors import DataError
from training.encoded import is_held_out
from training.encoding import load_encoder
from training.ingest import Ingested, ingest
from training.sources import Source
from training.tokens import TokenStore

pytestmark = pytest.mark.cluster

SHARE = 0.25
Ingest = Callable[..., Ingested]


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """All documents that `sources` has, in order."""
    return [f"{kind} number {number}" for kind in ("file", "line", "row") for number in range(40)]


@pytest.fixture
def sources(tmp_path: Path, texts: list[str]) -> list[Source]:
    """Nested text files, JSON lines and Parquet, 40 documents each."""
    for number, text in enumerate(texts[:40]):
        path = tmp_path / "texts" / f"{number // 10}" / f"{number % 10}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"body": text}) + "\n\n" for text in texts[40:80]))
    rows = pa.table({"text": texts[80:], "kind": [f"kind {number % 3}" for number in range(40)]})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=7)
    return [
        Source(str(tmp_path / "texts"), task="files"),
        Source(str(tmp_path / "*.jsonl"), column="body", task="lines"),
        Source(str(tmp_path / "rows.parquet"), task_column="kind"),
    ]


@pytest.fixture
def run(ray_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """Ingests with the tests' tokenizer, cut into many pieces."""
    del ray_port  # only what it starts is needed
    for name in ("MIN_PIECE_BYTES", "MAX_PIECE_BYTES"):
        monkeypatch.setattr(f"training.pieces.{name}", 200)
    tokenizer = make_tokenizer(tmp_path / "model")

    def call(sources: list[Source], storage: str = "storage", **options: object) -> Ingested:
        given = {"vocab_size": VOCABULARY, "num_cpus": 0.5} | options
        return ingest(sources, tokenizer, tmp_path / storage, **given)  # pyright: ignore[reportArgumentType]

    return call


def documents(store: TokenStore) -> list[list[int]]:
    return [store.document(index).tolist() for index in range(store.info.num_documents)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def test_all_documents_are_stored_in_order_and_found_again(
    run: Ingest, sources: list[Source], texts: list[str], tmp_path: Path
) -> None:
    told = list[tuple[int, int]]()
    made = run(sources, held_out=SHARE, progress=lambda *numbers: told.append(numbers))
    encode = load_encoder(tmp_path / "model", VOCABULARY).encode
    kept = [text for text in texts if is_held_out(text, SHARE)]
    assert made.held_out is not None
    assert documents(made.training) == encode([text for text in texts if text not in kept])
    assert documents(made.held_out) == encode(kept)
    names = ("files", "kind 0", "kind 1", "kind 2", "lines")
    assert made.training.info.task_names == made.held_out.info.task_names == names
    assert made.training.tasks is not None
    tasks = [*["files"] * 40, *["lines"] * 40, *(f"kind {number % 3}" for number in range(40))]
    wanted = [task for task, text in zip(tasks, texts, strict=True) if text not in kept]
    assert [names[task] for task in made.training.tasks] == wanted
    assert told == sorted(told)
    assert told[-1] == (120, made.training.info.num_tokens + made.held_out.info.num_tokens)

    again = run(sources, held_out=SHARE, progress=lambda *_: pytest.fail("read again"))
    assert (made.reused, again.reused) == (False, True)
    assert again.training.info == made.training.info
    elsewhere = run(sources, "elsewhere", held_out=SHARE)
    assert not elsewhere.reused
    assert contents(tmp_path / "storage") == contents(tmp_path / "elsewhere")
    assert len(contents(tmp_path / "storage")) == 8


def test_what_takes_longest_stays_first(run: Ingest, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["long " * 100_000, *("short " * (40 + number) for number in range(7))]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    store = run([Source(str(tmp_path / "*.txt"))]).training
    assert [len(document) for document in documents(store)] == [len(text) + 2 for text in texts]
    assert capfd.readouterr() == ("", "")


def test_a_changed_file_is_read_and_blank_ones_are_no_documents(run: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (tmp_path / "b.txt").write_text("\n")
    before = run([Source(str(tmp_path / "*.txt"))])
    path.write_text("one more")
    after = run([Source(str(tmp_path / "*.txt"))])
    assert (after.reused, after.held_out, after.training.tasks) == (False, None, None)
    assert [len(documents(each.training)[0]) for each in (before, after)] == [5, 10]
    assert after.training.info.num_documents == 1


def test_what_is_wrong_is_told_and_nothing_is_left(run: Ingest, tmp_path: Path) -> None:
    def given(name: str, content: bytes, **options: str) -> Source:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return Source(str(path.parent), **options)

    for source, message in (
        (Source(str(tmp_path / "nowhere")), "there is no such file or folder"),
        (given("blank/a.txt", b" \n"), r"blank: there is no text at all \(1 documents, all blank\)"),
        (given("empty/a.jsonl", b""), r"empty: there is no text at all \(0 documents"),
        (given("bytes/a.txt", b"\xff"), "a.txt: is not UTF-8"),
        (given("column/a.jsonl", b'{"body": "a"}'), r"a.jsonl, line 1: there is no column 'text' \(found: body\)"),
        (given("number/a.jsonl", b'{"text": "a"}\n{"text": 1}'), "a.jsonl, line 2: column 'text' holds int"),
    ):
        with pytest.raises(DataError, match=message):
            run([source])
    assert list((tmp_path / "storage").glob("data/*")) == []


def test_the_first_of_several_errors_is_told(run: Ingest, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_bytes(b"fine " * 50 if number < 3 else b"\xff" * 250)
    with pytest.raises(DataError, match="03.txt"):
        run([Source(str(tmp_path / "*.txt"))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": 1.0}, "held_out is 1.0; it is a share of the documents, at least 0 and below 1"),
        ({"held_out": 1e-9}, "held_out: 1e-09 chose none of 1 documents"),
        ({"held_out": 1 - 1e-9}, "held_out: 0.999999999 chose all of 1 documents"),
        ({"vocab_size": 3}, "beyond the model's vocabulary of 3"),
    ],
)
def test_options_that_do_not_fit(run: Ingest, tmp_path: Path, options: dict[str, float], message: str) -> None:
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(DataError, match=message):
        run([Source(str(tmp_path / "a.txt"))], **options)


def test_sources_that_do_not_go_together(run: Ingest) -> None:
    with pytest.raises(DataError, match="no sources are given"):
        run([])
    with pytest.raises(DataError, match="b: has no task, and a has one"):
        run([Source("a", task="x"), Source("b")])


def test_a_damaged_store_is_not_used(run: Ingest, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    store = run([Source(str(tmp_path / "a.txt"))]).training
    (store.directory / "tokens.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"tokens.bin: has 0 bytes.*Remove the folder"):
        run([Source(str(tmp_path / "a.txt"))])
