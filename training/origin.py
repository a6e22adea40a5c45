"""What a store is made of, and the fingerprint by which it is found again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple

from training.encoding import Encoder
from training.sources import Source, SourceFile
from training.tokens import FORMAT_VERSION, Origin


def origin_of(
    sources: Sequence[Source], files: Sequence[Sequence[SourceFile]], encoder: Encoder, held_out_share: float
) -> Origin:
    """Describes a store before it is made.

    A file counts as the same while its path, size and time of change are. What only a change of a file's contents
    would tell is not looked at: reading everything is what a fingerprint is to save.

    Args:
        sources: What to read.
        files: The files of each source.
        encoder: How documents become ids.
        held_out_share: The share of documents that is kept from training.
    """
    described = [asdict(source) | _summary(its_files) for source, its_files in zip(sources, files, strict=True)]
    parts = [FORMAT_VERSION, encoder.hash, encoder.vocab_size, held_out_share, described]
    return Origin(
        fingerprint=_digest(parts)[:32],
        tokenizer_hash=encoder.hash,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        sources=tuple(described),
    )


def _summary(files: Sequence[SourceFile]) -> dict[str, int | str]:
    return {
        "num_files": len(files),
        "num_bytes": sum(file.num_bytes for file in files),
        "files_hash": _digest([astuple(file) for file in files]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
