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
