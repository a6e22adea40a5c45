"""The bytes that each token id stands for, so that text can be decoded as a stream of bytes.

Known decoders are byte-level BPE (GPT-2, Tekken, the demo model) and SentencePiece with byte fallback (Mixtral).
For any other, `piece_table` answers None and `serving.detokenizer` decodes windows of ids instead.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceTable:
    """Token id -> bytes, computed when first asked for.

    `strip_left` counts the spaces that decoding removes from the very beginning of a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, byte_level: bool, replacements: Mapping[str, str], strip_left: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._byte_of_char = byte_of_char() if byte_level else None
        self._replacements = replacements
        self._added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        self.special_ids = special_ids(tokenizer)
        self.strip_left = strip_left
        self._cache: dict[int, bytes] = {}
        self._cache_text: dict[int, bytes] = dict.fromkeys(self.special_ids, b"")

    def piece(self, token_id: int) -> bytes:
        """The bytes of a token, special tokens' names included; b"" for an id without a token."""
        piece = self._cache.get(token_id)
        if piece is None:
            piece = self._cache[token_id] = self._compute(token_id)
        return piece

    def text_piece(self, token_id: int) -> bytes:
        """The same, with special tokens as b""."""
        piece = self._cache_text.get(token_id)
        if piece is None:
            piece = self._cache_text[token_id] = self.piece(token_id)
        return piece

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_of_char is not None:
            return _byte_level_piece(token, self._byte_of_char)
        byte = BYTE_TOKEN.fullmatch(token)
        if byte:
            return bytes([int(byte[1], 16)])
        for pattern, content in self._replacements.items():
            token = token.replace(pattern, content)
        return token.encode()


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that `skip_special_tokens` leaves out."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def piece_table(tokenizer: Tokenizer) -> PieceTable | None:
    """The table for a decoder that works token by token; None for one that does not."""
    described = cast("dict[str, Any]", json.loads(tokenizer.to_str()))
    decoder = cast("dict[str, Any] | None", described.get("decoder"))
    if decoder is None:
        return None
    if decoder["type"] == "ByteLevel":
        return PieceTable(tokenizer, byte_level=True, replacements={})
    if decoder["type"] == "Sequence":
        return _sentencepiece_table(tokenizer, decoder["decoders"])
    return None


def _sentencepiece_table(tokenizer: Tokenizer, steps: list[dict[str, Any]]) -> PieceTable | None:
    """Replace (one or more), ByteFallback, Fuse and an optional Strip of leading spaces, in this order."""
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceTable(tokenizer, byte_level=True, replacements={})
    shape = re.fullmatch(r"(?:Replace )+ByteFallback Fuse( Strip)?", " ".join(kinds))
    if shape is None:
        return None
    replacements: dict[str, str] = {}
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                return None
            replacements[step["pattern"]["String"]] = step["content"]
    strip_left = 0
    if shape[1]:
        if steps[-1]["content"] != " " or steps[-1]["stop"] != 0:
            return None
        strip_left = int(steps[-1]["start"])
    return PieceTable(tokenizer, byte_level=False, replacements=replacements, strip_left=strip_left)


def _byte_level_piece(token: str, byte_of: Mapping[str, int]) -> bytes:
    # A token with a character outside of the alphabet (an added token with a space, say) stands for itself.
    if all(char in byte_of for char in token):
        return bytes(byte_of[char] for char in token)
    return token.encode()


def byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 characters stand for themselves, the rest for 256, 257, ...

    Example: byte 0x41 is "A"; byte 0x00, the first unprintable one, is chr(256) = "Ā"; byte 0x20 is chr(288) = "Ġ".
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
