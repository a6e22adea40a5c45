"""Token ids to text while they come, with no half character ever shown.

`tokenizers.decoders.DecodeStream` would be the library's way, but it waits for as long as the text ends in U+FFFD:
a model that emits one invalid byte after another gets no text at all, and each step decodes everything held so far
again (measured: 207 us per token after 2000 tokens). A byte stream through the standard library's incremental
UTF-8 decoder holds back three bytes at most.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from serving.pieces import PieceTable, special_ids

REPLACEMENT = "\ufffd"
# An unfinished character spans three tokens at most; a longer run of U+FFFD is what the text really says.
MAX_WAITING_TOKENS = 4


class Detokenizer(Protocol):
    """Decodes one sequence; each id is pushed once, in order."""

    @property
    def unfinished(self) -> bool:
        """Whether the text so far ends within a character, which is held back."""
        ...

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain."""
        ...

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never finished."""
        ...


class ByteDetokenizer:
    """Joins the tokens' bytes; O(1) per token. `continues` says that text stands before the first token."""

    __slots__ = ("_decoder", "_num_to_strip", "_piece")

    def __init__(self, pieces: PieceTable, skip_special_tokens: bool = True, continues: bool = False) -> None:
        self._piece = pieces.text_piece if skip_special_tokens else pieces.piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_to_strip = 0 if continues else pieces.strip_left

    @property
    def unfinished(self) -> bool:
        """See Detokenizer."""
        return bool(self._decoder.getstate()[0])

    def push(self, token_ids: Sequence[int]) -> str:
        """See Detokenizer."""
        text = self._decoder.decode(b"".join(map(self._piece, token_ids)))
        return self._stripped(text) if self._num_to_strip else text

    def finish(self) -> str:
        """See Detokenizer."""
        return self._decoder.decode(b"", True)

    def _stripped(self, text: str) -> str:
        while self._num_to_strip and text:
            if text[0] != " ":
                self._num_to_strip = 0
            else:
                text = text[1:]
                self._num_to_strip -= 1
        return text


class WindowDetokenizer:
    """For decoders that look at several tokens: compares the decoded window with and without the new ids.

    `_ids[:_num_read]` has been shown already and stays as context for what follows: many decoders leave out the space
    before the first token of all. `context` stands for text before the first token; it is not shown.
    """

    __slots__ = ("_ids", "_num_read", "_num_waiting", "_shown", "_skipped", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped = special_ids(tokenizer) if skip_special_tokens else frozenset[int]()
        self._ids = list(context)
        self._num_read = len(context)
        self._num_waiting = 0  # tokens since text was shown
        self._shown = self._decode(context) if context else ""

    @property
    def unfinished(self) -> bool:
        """See Detokenizer."""
        return self._num_read < len(self._ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """See Detokenizer."""
        return "".join(map(self._push_one, token_ids))

    def finish(self) -> str:
        """See Detokenizer."""
        return self._decode(self._ids)[len(self._shown) :]

    def _push_one(self, token_id: int) -> str:
        # Decoded as if it were not there: as context it would count as a text's beginning.
        if token_id in self._skipped:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        self._num_waiting += 1
        if text.endswith(REPLACEMENT):
            certain = self._certain(text.rstrip(REPLACEMENT))
            if certain or self._num_waiting < MAX_WAITING_TOKENS:
                return certain
        self._num_waiting = 0
        delta = text[len(self._shown) :]
        new_ids = self._ids[self._num_read :]
        new_text = self._decode(new_ids)
        if new_text or not self._shown:
            self._ids, self._num_read, self._shown = new_ids, len(new_ids), new_text
        else:  # tokens that are no text by themselves (a lone space) are no context: that of before stays
            del self._ids[self._num_read :]
        return delta

    def _certain(self, text: str) -> str:
        """What is new of the text before an unfinished character; the token that begins it may end another one."""
        delta = text[len(self._shown) :]
        if delta:
            self._shown, self._num_waiting = text, 1
        return delta

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


class NoDetokenizer:
    """For a model without a tokenizer: ids only, no text."""

    unfinished = False

    def push(self, token_ids: Sequence[int]) -> str:
        """See Detokenizer."""
        del token_ids
        return ""

    def finish(self) -> str:
        """See Detokenizer."""
        return ""
