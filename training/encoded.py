"""Encoded documents: what becomes of a piece of the sources, in tables small enough to be passed between processes.

Legend: N tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data_errors import DataError
from training.documents import Document, undecodable
from training.encoding import Encoder

Table: TypeAlias = Any  # a pyarrow.Table: pyarrow publishes no types

GROUP_CHARACTERS = 1 << 19  # encoded at once, unless a document alone has more: an encoding takes much memory
SCHEMA = pa.schema(
    [
        ("ids", pa.large_list(pa.uint32())),  # empty: a blank document
        ("task", pa.string()),
        ("held_out", pa.bool_()),
        ("error", pa.string()),  # in a table of its own, the last of its piece
    ]
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Documents as they are stored.

    Args:
        ids_N: Their ids, end to end.
        lengths: How many each has; at least 1.
        tasks: The name of each one's task; empty without tasks.
        held_out: Which are kept from training.
        num_blank: How many more were left out since they have no text.
    """

    ids_N: NDArray[np.uint32]
    lengths: NDArray[np.int64]
    tasks: list[str]
    held_out: NDArray[np.bool_]
    num_blank: int

    def select(self, chosen: NDArray[np.bool_]) -> "Encoded":
        """Just the chosen documents."""
        tasks = [task for task, wanted in zip(self.tasks, chosen, strict=True) if wanted] if self.tasks else []
        ids_N = self.ids_N[np.repeat(chosen, self.lengths)]
        return Encoded(ids_N, self.lengths[chosen], tasks, self.held_out[chosen], 0)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is kept from training: its text alone decides, so that every machine and every run agrees.

    Raises:
        UnicodeEncodeError: It holds half a surrogate pair, as only a JSON escape can bring in.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < int(share * (1 << 64))


def encode_documents(documents: Iterable[Document], encoder: Encoder, held_out_share: float) -> Iterator[Table]:
    """Encodes documents into tables of SCHEMA; an error ends them with a table that tells of it."""
    try:
        for group in _groups(documents):
            yield _table(group, encoder, held_out_share)
    except DataError as error:
        yield pa.Table.from_pylist([{"ids": [], "error": str(error)}], schema=SCHEMA)


def decode_table(table: Table) -> Encoded:
    """What `encode_documents` put into a table.

    Raises:
        DataError: It tells of an error.
    """
    for message in table["error"].drop_null():
        raise DataError(message.as_py())
    ids = table["ids"].combine_chunks()
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    kept = lengths > 0
    tasks = table["task"].filter(pa.array(kept)).drop_null().to_pylist()
    held_out = table["held_out"].to_numpy()[kept].astype(bool)
    return Encoded(ids.flatten().to_numpy(), lengths[kept], tasks, held_out, int((~kept).sum()))


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        if group and size + len(document.text) > GROUP_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(document)
        size += len(document.text)
    if group:
        yield group


def _table(group: list[Document], encoder: Encoder, held_out_share: float) -> Table:
    held_out = [_is_held_out(document, held_out_share) for document in group]
    written = [document for document in group if not _is_blank(document)]
    encoded = iter(encoder.encode([document.text for document in written]))
    ids = [[] if _is_blank(document) else next(encoded) for document in group]
    for document, its_ids in zip(group, ids, strict=True):
        encoder.check(its_ids, document.where)
    lengths = np.array([len(its_ids) for its_ids in ids])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    flat = np.fromiter(chain.from_iterable(ids), np.uint32, offsets[-1])
    return pa.table(
        {
            "ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            "task": pa.array([document.task for document in group], pa.string()),
            "held_out": pa.array(held_out),
            "error": pa.nulls(len(group), pa.string()),
        },
        schema=SCHEMA,
    )


def _is_blank(document: Document) -> bool:
    return not document.text.strip()


def _is_held_out(document: Document, share: float) -> bool:
    try:
        return is_held_out(document.text, share)
    except UnicodeEncodeError as error:
        raise undecodable(error, document.where()) from error
