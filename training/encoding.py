"""Text to token ids: the tokenizer of a model's directory, with what it puts around a document."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from training.data_errors import EncodingError

MAX_VOCABULARY = 1 << 31
TOKENIZER, TOKENIZER_CONFIG, MODEL_CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"


@dataclass(frozen=True, slots=True)
class Encoder:
    """How a document becomes ids. Plain data, so that it travels to any process.

    Args:
        tokenizer_json: The text of tokenizer.json.
        vocab_size: How many ids the model has rows for.
        eos_id: The last id of every document.
        adds_eos: Whether the tokenizer ends documents with it by itself.
        bos_id: The first id of every document where the tokenizer does not set it by itself, but should.
    """

    tokenizer_json: str
    vocab_size: int
    eos_id: int
    adds_eos: bool
    bos_id: int | None

    @property
    def hash(self) -> str:
        """Differs where documents may become other ids."""
        around = f"{self.eos_id} {self.adds_eos} {self.bos_id}\n"
        return hashlib.sha256((around + self.tokenizer_json).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each document, its end included. A special token that a text spells out becomes that token."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # parallel are the processes
        encodings = _tokenizer(self.tokenizer_json).encode_batch_fast(list(texts))
        before = [] if self.bos_id is None else [self.bos_id]
        after = [] if self.adds_eos else [self.eos_id]
        return [[*before, *encoding.ids, *after] for encoding in encodings]

    def check(self, ids: Sequence[int], where: Callable[[], str]) -> None:
        """Checks that the model knows all ids of a document.

        Raises:
            EncodingError: It does not know one of them; `where` names the document.
        """
        highest = max(ids, default=0)
        if highest >= self.vocab_size:
            token = _tokenizer(self.tokenizer_json).id_to_token(highest)
            raise EncodingError(
                f"{where()}: its token {token!r} has id {highest}, beyond the model's vocabulary of {self.vocab_size}; "
                "use the model's own tokenizer, or a model with a larger vocabulary"
            )


def load_encoder(directory: Path, vocab_size: int) -> Encoder:
    """The encoder of a directory with tokenizer.json and, for its special tokens, tokenizer_config.json or config.json.

    Raises:
        EncodingError: A file is missing or broken, or no end-of-sequence token is known, or the model lacks it.
    """
    path = directory / TOKENIZER
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise EncodingError(f"{path}: cannot be read ({error}); name a directory with a {TOKENIZER}") from error
    try:
        tokenizer = _tokenizer(text)
    except Exception as error:  # the library raises bare Exceptions
        raise EncodingError(f"{path}: is no tokenizer ({error}); copy it from the model's source again") from error
    config = _read_json(directory / TOKENIZER_CONFIG)
    eos_id = _eos_id(tokenizer, config, directory)
    around: list[int] = tokenizer.encode("x").ids
    bos_id = _special_id(tokenizer, config, "bos_token") if config.get("add_bos_token") else None
    starts = around[:1] == [bos_id]
    encoder = Encoder(text, vocab_size, eos_id, around[-1:] == [eos_id], None if starts else bos_id)
    encoder.check([eos_id, *around], lambda: str(path))
    return encoder


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """What a model of a tokenizer has to know of it. `bos_id` None: it knows no token that starts a text."""

    vocab_size: int
    bos_id: int | None
    eos_id: int


def special_ids(directory: Path) -> SpecialIds:
    """Returns the size of a tokenizer's vocabulary and the ids that start and end a text.

    Raises:
        EncodingError: As for `load_encoder`.
    """
    load_encoder(directory, MAX_VOCABULARY)  # for its checks
    tokenizer = _tokenizer((directory / TOKENIZER).read_text(encoding="utf-8"))
    config = _read_json(directory / TOKENIZER_CONFIG)
    bos_id = _special_id(tokenizer, config, "bos_token")
    return SpecialIds(tokenizer.get_vocab_size(), bos_id, _eos_id(tokenizer, config, directory))


def _eos_id(tokenizer: Tokenizer, config: dict[str, Any], directory: Path) -> int:
    found: Any = _special_id(tokenizer, config, "eos_token")
    if found is None:
        found = _read_json(directory / MODEL_CONFIG).get("eos_token_id")
    if isinstance(found, list):
        found = next(iter(cast("list[Any]", found)), None)
    if isinstance(found, int):
        return found
    raise EncodingError(
        f"{directory}: names no end-of-sequence token, which ends every document; set eos_token in {TOKENIZER_CONFIG} "
        "to a token of the vocabulary"
    )


def _special_id(tokenizer: Tokenizer, config: dict[str, Any], name: str) -> int | None:
    value: Any = config.get(name)
    if isinstance(value, dict):  # an AddedToken written out
        value = cast("dict[str, Any]", value).get("content")
    return tokenizer.token_to_id(value) if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EncodingError(f"{path}: is no JSON ({error}); copy it from the model's source again") from error
    if not isinstance(value, dict):
        raise EncodingError(f"{path}: holds {type(value).__name__}, not an object; copy it again")
    return cast("dict[str, Any]", value)


@lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    """Kept, since a process encodes many pieces with one tokenizer, and a large one takes a second to read."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()  # which a tokenizer.json may bring along: nothing is to be lost silently
    tokenizer.no_padding()
    return tokenizer
