"""What is left of a reading that fails; the rest of it needs Ray (tests/integration/test_ray_ingest.py)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.training.room import files_of_at_most
from tests.training.small_data import VOCABULARY, make_tokenizer
from training.data_errors import StoreNotWritten
from training.encoded import Encoded, decode_table, encode_documents
from training.encoding import Encoder
from training.ingest import ingest
from training.pieces import Piece, read_documents
from training.sources import Source
from training.tokens import TokenWriter


def encode_here(
    pieces: Sequence[Piece], sources: Sequence[Source], encoder: Encoder, held_out: float, num_cpus: float
) -> Iterator[Encoded]:
    """What tasks of Ray Data do, in this process."""
    del num_cpus
    for piece in pieces:
        for table in encode_documents(read_documents(piece, sources[piece.source]), encoder, held_out):
            yield decode_table(table)


@pytest.mark.parametrize("room", [20_000, 60], ids=["in the middle of the tokens", "what is written last"])
def test_storage_that_takes_no_more_is_named_and_nothing_is_left(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.ingest._encode", encode_here)
    tokenizer, storage = make_tokenizer(tmp_path / "model"), tmp_path / "storage"
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"{number} " + "a few words " * (room // 200))
    sources = [Source(str(tmp_path / "*.txt"))]
    words = "tokens cannot be written in .*storage/data/.*: File too large; make room there, .* start the run again"
    with files_of_at_most(room), pytest.raises(StoreNotWritten, match=words):
        ingest(sources, tokenizer, storage, VOCABULARY, held_out=0.3)
    assert not list((storage / "data").iterdir())
    made = ingest(sources, tokenizer, storage, VOCABULARY, held_out=0.3)
    assert made.held_out is not None
    assert made.training.info.num_documents + made.held_out.info.num_documents == 40


def test_a_store_that_cannot_be_put_in_its_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, target: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("training.ingest._encode", encode_here)
    monkeypatch.setattr(Path, "rename", rename)
    (tmp_path / "a.txt").write_text("a few words")
    with pytest.raises(StoreNotWritten, match="storage/data/.*: Read-only file system; make room there"):
        ingest([Source(str(tmp_path / "a.txt"))], make_tokenizer(tmp_path / "model"), tmp_path / "storage", VOCABULARY)
    assert not list((tmp_path / "storage" / "data").iterdir())


def test_the_training_store_is_let_go_of_if_the_held_out_one_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TokenWriter] = []

    def make(directory: Path, vocab_size: int, with_tasks: bool) -> TokenWriter:
        if made:
            raise StoreNotWritten("no more files")
        made.append(TokenWriter(directory, vocab_size, with_tasks))
        return made[0]

    monkeypatch.setattr("training.ingest._encode", encode_here)
    monkeypatch.setattr("training.ingest.TokenWriter", make)
    (tmp_path / "a.txt").write_text("a few words")
    tokenizer, storage = make_tokenizer(tmp_path / "model"), tmp_path / "storage"
    with pytest.raises(StoreNotWritten, match="no more files"):
        ingest([Source(str(tmp_path / "a.txt"))], tokenizer, storage, VOCABULARY, held_out=0.3)
    assert all(file.closed for file in made[0]._files)  # pyright: ignore[reportPrivateUsage]
