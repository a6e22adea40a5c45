"""Text to token ids and back, for one checkpoint directory."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from serving.chat_template import ChatTemplate, ChatTemplateError
from serving.detokenizer import ByteDetokenizer, Detokenizer, NoDetokenizer, WindowDetokenizer
from serving.pieces import PieceTable, piece_table, special_ids

# Below this in all, encoding takes less than a millisecond: a hop to a thread and back would cost more than it saves.
THREAD_FROM_CHARS = 4096
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKENIZER_FILE = "tokenizer.json"
CONVERTIBLE_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "tekken.json")


class TokenizerError(ValueError):
    """The checkpoint's tokenizer files cannot be used."""


class NoTokenizer(ValueError):
    """Text was given to, or asked of, a model that has no tokenizer."""


class TextCodec:
    """Encodes, decodes and renders chats.

    A checkpoint may lack a tokenizer (then only token ids can be exchanged) or a chat template.
    """

    def __init__(self, tokenizer: Tokenizer | None, chat_template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self._pieces: PieceTable | None = None
        self._word_ids: list[int] = []  # what stands for the text before an output
        self.special_ids = frozenset[int]() if tokenizer is None else special_ids(tokenizer)
        if tokenizer is not None:
            # A tokenizer.json may carry the truncation it was trained with; a server must not cut prompts silently.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            self._pieces = piece_table(tokenizer)
            if self._pieces is None:
                self._word_ids = _word_ids(tokenizer)

    @classmethod
    def load(cls, directory: Path) -> "TextCodec":
        """Reads tokenizer.json and the chat template of a Hugging Face directory.

        Raises TokenizerError when a file is there but broken.
        """
        config = _read_json(directory / "tokenizer_config.json")
        source = _chat_template_source(directory, config)
        try:
            template = ChatTemplate(source, _special_tokens(config)) if source else None
        except ChatTemplateError as error:
            raise TokenizerError(f"{directory}: {error}; correct or remove it") from error
        return cls(_load_tokenizer(directory), template)

    @property
    def has_tokenizer(self) -> bool:
        """False: prompts must be token ids, and answers carry ids only."""
        return self._tokenizer is not None

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds. Raises NoTokenizer."""
        [token_ids] = await self.encode_all([text], add_special_tokens)
        return token_ids

    async def encode_all(
        self,
        texts: Sequence[str],
        add_special_tokens: bool = True,
        check: Callable[[list[int]], None] | None = None,
    ) -> list[list[int]]:
        """Token ids of several texts; see `encode`. What `check` raises of those of one text ends the work."""
        tokenizer = self._required()

        def encode_each() -> list[list[int]]:
            # One at a time: while it is made, an encoding takes a hundred times the memory of its text. Unlike
            # `encode`, `encode_batch_fast` lets go of the interpreter lock: the event loop goes on streaming.
            all_ids: list[list[int]] = []
            for text in texts:
                [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
                all_ids.append(encoding.ids)
                if check is not None:
                    check(all_ids[-1])
            return all_ids

        if sum(map(len, texts)) < THREAD_FROM_CHARS:
            return encode_each()
        return await asyncio.to_thread(encode_each)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Raises NoTokenizer."""
        return self._required().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = True, continues: bool = False) -> Detokenizer:
        """A fresh incremental decoder; `continues`: the text follows a prompt, so its leading space is meant."""
        if self._tokenizer is None:
            return NoDetokenizer()
        if self._pieces is None:
            return WindowDetokenizer(self._tokenizer, skip_special_tokens, self._word_ids if continues else ())
        return ByteDetokenizer(self._pieces, skip_special_tokens, continues)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself, special tokens as their names; b"" without a tokenizer."""
        if self._pieces is not None:
            return self._pieces.piece(token_id)
        if self._tokenizer is None:
            return b""
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def token_name(self, token_id: int) -> str:
        """The token as the vocabulary spells it; "" for an id without a token."""
        return self._required().id_to_token(token_id) or ""

    def _required(self) -> Tokenizer:
        if self._tokenizer is None:
            raise NoTokenizer(
                "This model has no tokenizer: send the prompt as token ids, and set return_token_ids to get ids back"
            )
        return self._tokenizer


def has_tokenizer_files(directory: Path) -> bool:
    """Whether `TextCodec.load` would read a tokenizer (or say what is wrong with it)."""
    return any((directory / name).is_file() for name in (TOKENIZER_FILE, *CONVERTIBLE_FILES))


def _word_ids(tokenizer: Tokenizer) -> list[int]:
    """The first token that is a word (or part of one) by itself, as a list; empty if there is none."""
    ids = range(tokenizer.get_vocab_size())
    return next(([token_id] for token_id in ids if tokenizer.decode([token_id]).isalnum()), [])


def _load_tokenizer(directory: Path) -> Tokenizer | None:
    if not has_tokenizer_files(directory):
        return None
    path = directory / TOKENIZER_FILE
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerError(
                f"{path} is not a tokenizer: {error}; copy it from the model's source again"
            ) from error
    return _converted_by_transformers(directory)


def _converted_by_transformers(directory: Path) -> Tokenizer:
    # Imported here only: it takes seconds and brings torch along, and nearly every checkpoint has a tokenizer.json.
    from transformers import AutoTokenizer

    try:
        converted = cast("Any", AutoTokenizer).from_pretrained(str(directory))
    except Exception as error:
        raise TokenizerError(
            f"{directory} has no tokenizer.json, and transformers could not make one from the other files: {error}"
        ) from error
    backend = getattr(converted, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(f"{directory}: its tokenizer has no fast form; add a tokenizer.json")
    return backend


def _chat_template_source(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # older files hold several named templates
        named = {each["name"]: each["template"] for each in cast("list[dict[str, str]]", source)}
        return named.get("default")
    return source if isinstance(source, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKEN_NAMES:
        value: Any = config.get(name)
        if isinstance(value, dict):  # an AddedToken written out
            value = cast("dict[str, Any]", value).get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}; copy it from the model's source again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return cast("dict[str, Any]", value)
