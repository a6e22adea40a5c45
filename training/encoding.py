"""Text to token ids: the tokenizer of a model's directory, with what it puts around a document."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from model.config_fields import MAX_INTEGER, ConfigFields
from model.end_tokens import read_end_tokens
from model.errors import ConfigError
from serving.tokenizer_files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    LoadedTokenizer,
    TokenizerError,
    load_tokenizer,
)
from training.data_errors import EncodingError

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Encoder:
    """How a document becomes ids. Plain data, so that it travels to any process.

    Args:
        tokenizer_json: The tokenizer written out, with all added tokens.
        files_hash: Of the files that it was made from.
        vocab_size: How many ids the model has rows for.
        eos_id: The last id of every document.
        adds_eos: Whether the tokenizer ends documents with it by itself.
        splits_special: Whether a special token that a text spells out is text like any other.
    """

    tokenizer_json: str
    files_hash: str
    vocab_size: int
    eos_id: int
    adds_eos: bool
    splits_special: bool = False

    @property
    def hash(self) -> str:
        """Differs where documents may become other ids."""
        return hashlib.sha256(
            f"{self.files_hash} {self.eos_id} {self.adds_eos} {self.splits_special}".encode()
        ).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each document, as a prompt has them, and its end."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # parallel are the processes
        encodings = _tokenizer(self.tokenizer_json, self.splits_special).encode_batch_fast(list(texts))
        after = [] if self.adds_eos else [self.eos_id]
        return [[*encoding.ids, *after] for encoding in encodings]

    def check(self, ids: Sequence[int], where: Callable[[], str]) -> None:
        """Checks that the model knows all ids of a document.

        Raises:
            EncodingError: It does not know one of them; `where` names the document.
        """
        highest = max(ids, default=0)
        if highest >= self.vocab_size:
            token = _tokenizer(self.tokenizer_json, self.splits_special).id_to_token(highest)
            raise EncodingError(
                f"{where()}: its token {token!r} has id {highest}, beyond the model's vocabulary of {self.vocab_size}; "
                "use the model's own tokenizer, or a model with a larger vocabulary"
            )


def load_encoder(directory: Path, vocab_size: int) -> Encoder:
    """The encoder of a directory's tokenizer, by the rules by which it is served.

    Raises:
        EncodingError: There is none, or a file is broken, or no end-of-sequence token is known, or the model lacks it.
    """
    loaded = _load(directory)
    eos_id = _eos_id(loaded, directory)
    around = loaded.tokenizer.encode("x").ids
    encoder = Encoder(
        loaded.tokenizer.to_str(),
        _hash_of(directory, loaded),
        vocab_size,
        eos_id,
        around[-1:] == [eos_id],
        loaded.tokenizer.encode_special_tokens,
    )
    encoder.check([eos_id, *around], lambda: str(directory / TOKENIZER_FILE))
    return encoder


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """What a model of a tokenizer has to know of it. `bos_id` None: it knows no token that starts a text."""

    vocab_size: int
    bos_id: int | None
    eos_id: int


def special_ids(directory: Path) -> SpecialIds:
    """Returns how many ids a tokenizer's vocabulary spans, and those that start and end a text.

    Raises:
        EncodingError: As for `load_encoder`.
    """
    loaded = _load(directory)
    highest = max(loaded.tokenizer.get_vocab().values())  # ids may have gaps
    return SpecialIds(highest + 1, loaded.bos_id, _eos_id(loaded, directory))


def _load(directory: Path) -> LoadedTokenizer:
    try:
        loaded = load_tokenizer(directory)
    except TokenizerError as error:
        raise EncodingError(str(error)) from error
    if loaded is None:
        raise EncodingError(f"{directory} has no tokenizer; name a directory with a {TOKENIZER_FILE}")
    return loaded


def _eos_id(loaded: LoadedTokenizer, directory: Path) -> int:
    """The tokenizer's own, or else the first by which texts of the model in the directory end when it is served."""
    if loaded.eos_id is not None:
        return loaded.eos_id
    path = directory / MODEL_CONFIG
    try:
        ends = read_end_tokens(ConfigFields.read(path), MAX_INTEGER) if path.is_file() else ()
    except ConfigError as error:
        raise EncodingError(str(error)) from error
    if ends:
        return ends[0]
    raise EncodingError(
        f"{directory}: names no end-of-sequence token, which ends every document; set eos_token in {CONFIG_FILE} "
        "to a token of the vocabulary"
    )


def _hash_of(directory: Path, loaded: LoadedTokenizer) -> str:
    """Of what ids depend on, as the files have it: how a release of the library writes it out must not show."""
    path = directory / TOKENIZER_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else loaded.tokenizer.to_str()
    added = [
        [token_id, token.content, token.special, token.lstrip, token.rstrip, token.normalized, token.single_word]
        for token_id, token in sorted(loaded.tokenizer.get_added_tokens_decoder().items())
    ]
    return hashlib.sha256(json.dumps([text, added]).encode()).hexdigest()


@lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: str, splits_special: bool) -> Tokenizer:
    """Kept, since a process encodes many pieces with one tokenizer, and a large one takes a second to read."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = splits_special
    return tokenizer
