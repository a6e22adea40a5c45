"""Special tokens in a client's text, written out instead of obeyed: `split_special_tokens`, as transformers names it.

Of a chat only the texts of its messages are meant, not what the template writes. So each special token in a message is
replaced by a mark before the template sees it; where the marks end up tells which special tokens are the client's.
"""

import re
import secrets
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer

from serving.pieces import special_ids


@dataclass(frozen=True)
class Marked:
    """A text, and where in it (start, end; ascending) special tokens stand that are to be written out."""

    text: str
    spans: list[tuple[int, int]]


class Marks:
    """Marks for the special tokens of one chat. Nobody can have written one: they are drawn at random."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        longest_first = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._tokens: list[str] = []
        self._name = f"SPECIAL{secrets.token_hex(16).upper()}X"

    def put(self, text: str) -> str:
        """The text with a mark for each special token."""
        return text if self._pattern is None else self._pattern.sub(self._put_one, text)

    def put_in(self, value: Any) -> Any:
        """A copy of what JSON can write with marks in all of its texts, wherever they are."""
        if isinstance(value, str):
            return self.put(value)
        if isinstance(value, list):
            return [self.put_in(each) for each in cast("list[Any]", value)]
        if isinstance(value, dict):
            return {self.put(name): self.put_in(each) for name, each in cast("dict[str, Any]", value).items()}
        return value

    def take(self, text: str) -> Marked:
        """The text with special tokens for marks. Raises ValueError where a template has changed one."""
        pieces = re.split(f"{self._name}([0-9]+)E", text)
        parts, spans, length = [pieces[0]], list[tuple[int, int]](), len(pieces[0])
        for number, following in zip(pieces[1::2], pieces[2::2], strict=True):
            token = self._tokens[int(number)]
            spans.append((length, length + len(token)))
            parts += [token, following]
            length += len(token) + len(following)
        whole = "".join(parts)
        if self._name.casefold() in whole.casefold():
            raise ValueError(
                "the model's chat template changes the texts of messages, so special tokens cannot be split"
            )
        return Marked(whole, spans)

    def _put_one(self, found: re.Match[str]) -> str:
        self._tokens.append(found[0])
        return f"{self._name}{len(self._tokens) - 1}E"


class SplittingTokenizer:
    """A tokenizer beside `plain`, a copy of it to which special tokens are text like any other."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = special_ids(tokenizer)
        self.plain: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.plain.encode_special_tokens = True

    def marks(self) -> Marks:
        """Fresh marks, for one chat."""
        return Marks([self._tokenizer.id_to_token(token_id) or "" for token_id in self._special_ids])

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text that holds no special tokens but those that the tokenizer adds."""
        [encoding] = self.plain.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def encode_marked(self, marked: Marked, add_special_tokens: bool) -> list[int]:
        """Token ids of a text some of whose special tokens are written out, each by itself."""
        [encoding] = self._tokenizer.encode_batch([marked.text], add_special_tokens=add_special_tokens)
        starts = [start for start, _ in marked.spans]
        token_ids: list[int] = []
        known: dict[str, list[int]] = {}  # most are the same few
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            place = bisect_right(starts, end - 1) - 1
            if token_id in self._special_ids and start < end and place >= 0 and marked.spans[place][1] > start:
                written = marked.text[start:end]
                if written not in known:
                    known[written] = self.encode(written, add_special_tokens=False)
                token_ids += known[written]
            else:
                token_ids.append(token_id)
        return token_ids
