"""Which tokens end a text, by a checkpoint's files. No torch here: the gateway reads this too.

As in transformers' `generate()`: a generation_config.json, where there is one, says it alone, even if it names none;
else config.json does. Where they name none, transformers goes on to the limit; here the tokenizer's `eos_token` counts
then, as in vLLM and SGLang: a service whose texts never end is of no use.
"""

from pathlib import Path
from typing import cast

from model.config_fields import ConfigFields

GENERATION_FILE = "generation_config.json"
FIELD = "eos_token_id"
_NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def read_end_tokens(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text, each once; empty if no file names any.

    Args:
        fields: config.json's.

    Raises:
        ConfigError: A file cannot be read, or names what is no token.
    """
    directory = fields.path.parent
    generation = directory / GENERATION_FILE
    said = (ConfigFields.read(generation) if generation.is_file() else fields).token_ids(FIELD)
    # One beyond the vocabulary (an added token that was never trained) cannot be drawn, so it ends nothing.
    ids = tuple(dict.fromkeys(token for token in said if 0 <= token < vocab_size))
    if ids:
        return ids
    token = _tokenizer_end(directory)
    return (token,) if token is not None and token < vocab_size else ()


def _tokenizer_end(directory: Path) -> int | None:
    """Returns the id of the `eos_token` that the tokenizer's own files name; None: they name none that it has."""
    for name in _NAMING_FILES:
        if (directory / name).is_file():
            text = _text_of(ConfigFields.read(directory / name).get("eos_token"))
            if text is not None:
                return _token_id(directory, text)
    return None


def _text_of(token: object) -> str | None:
    if isinstance(token, dict):  # an AddedToken written out
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _token_id(directory: Path, text: str) -> int | None:
    """Returns a token's id: by tokenizer_config.json's added tokens, or else by tokenizer.json."""
    config, tokenizer = directory / _NAMING_FILES[0], directory / "tokenizer.json"
    if config.is_file():
        for token_id, token in ConfigFields.read(config).section("added_tokens_decoder").items():
            if _text_of(token) == text and token_id.isdecimal():
                return int(token_id)
    if not tokenizer.is_file():
        return None
    fields = ConfigFields.read(tokenizer)
    added = fields.get("added_tokens")
    for token in cast("list[object]", added) if isinstance(added, list) else []:
        if _text_of(token) == text:
            found = cast("dict[str, object]", token).get("id")
            return found if isinstance(found, int) else None
    vocabulary = fields.section("model").get("vocab")
    if isinstance(vocabulary, list):  # a Unigram's: pieces with their scores, in the order of their ids
        pieces = enumerate(cast("list[object]", vocabulary))
        return next((place for place, piece in pieces if isinstance(piece, list) and text in piece[:1]), None)
    found = cast("dict[str, object]", vocabulary).get(text) if isinstance(vocabulary, dict) else None
    return found if isinstance(found, int) else None
