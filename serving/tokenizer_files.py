"""A directory's tokenizer, by the rules of transformers: one function for the gateway, `manta generate` and training.

Which tokens are special, where they may be declared (tokenizer.json, tokenizer_config.json, special_tokens_map.json,
added_tokens.json, tokenizer.model) and what a template may name is what transformers' own class makes of the files: the
one that AutoTokenizer takes for a Mixtral, and it does without torch (docs/decisions/013). What it would only log, or
say of no file, is refused here.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, models

from model.json_text import (
    GIT_LFS_PROBLEM,
    GIT_LFS_REMEDY,
    GIT_LFS_START,
    LINK_PROBLEM,
    LINK_REMEDY,
    JsonError,
    check_start,
    parse_object,
)

TOKENIZER_FILE, CONFIG_FILE, ADDED_FILE = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SENTENCEPIECE_FILE, TEMPLATE_FILE = "tokenizer.model", "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
JSON_FILES = (CONFIG_FILE, "special_tokens_map.json", ADDED_FILE)
# What a directory without a tokenizer.json may have. The last two are read by classes of their own in transformers,
# which it does not take for a Mixtral.
CONVERTIBLE_FILES = (SENTENCEPIECE_FILE, "tekken.json", "tiktoken.model")
FOREIGN_FILES = ("spiece.model", "vocab.json")
MAX_BYTES = 1 << 28  # of one file; the largest tokenizers have 35 MB
FORCED_CLEAN_UP = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
COPY_AGAIN = "copy it from the model's source again"


class TokenizerError(ValueError):
    """The tokenizer's files cannot be used; names the file, the field where there is one, and what to do."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """What the files of a directory say.

    Args:
        tokenizer: With all added tokens; it neither cuts nor pads.
        special_tokens: By the names that templates use: `bos_token`, `eos_token`, a model's own `image_token`, ...
        chat_template: The source of the default one.
    """

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | None

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the files name one."""
        return self._id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the files name one."""
        return self._id("eos_token")

    def _id(self, name: str) -> int | None:
        return self.tokenizer.token_to_id(self.special_tokens[name]) if name in self.special_tokens else None


def has_tokenizer_files(directory: Path) -> bool:
    """Whether `load_tokenizer` would read a tokenizer (or say what is wrong with it)."""
    names = (TOKENIZER_FILE, *CONVERTIBLE_FILES, *FOREIGN_FILES)
    return any((directory / name).exists() or (directory / name).is_symlink() for name in names)


def load_tokenizer(directory: Path) -> LoadedTokenizer | None:
    """Returns the tokenizer of a directory; None: it has none.

    Raises:
        TokenizerError: Its files are broken, contradict each other, or say what is not done here.
    """
    config = _check_files(directory)
    if not has_tokenizer_files(directory):
        return None
    found = _by_transformers(directory)
    tokenizer: Any = getattr(found, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise TokenizerError(f"{directory}: its tokenizer has no fast form; add a {TOKENIZER_FILE}")
    tokenizer.no_truncation()  # a file may carry what it was trained with: nothing is to be lost silently
    tokenizer.no_padding()
    _check_ids(tokenizer, directory, config)
    _check_clean_up(found, tokenizer, directory)
    return LoadedTokenizer(tokenizer, dict(found.special_tokens_map), _template(found, directory))


def _check_files(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, after a look at what transformers would say no file of."""
    templates = sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))
    for name in (TOKENIZER_FILE, *CONVERTIBLE_FILES, *FOREIGN_FILES):
        _check_start(directory / name)
    for path in (directory / TEMPLATE_FILE, *templates):
        _check_text(path)
    objects = {name: read_json_object(directory / name) for name in JSON_FILES}
    return objects[CONFIG_FILE]


def _check_start(path: Path) -> None:
    """Refuses what the libraries would say no remedy of, or another than what helps."""
    start = _read(path, 64)
    try:
        if path.suffix == ".json":
            check_start(start or b"")
    except JsonError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _read(path: Path, num_bytes: int) -> bytes | None:
    """What a file begins with, if there is one; whole, it is of a size that a tokenizer's files have."""
    try:
        if not path.exists() and not path.is_symlink():
            return None
        if path.exists() and not path.is_file():
            raise TokenizerError(f"{path} is a folder, or another thing that is no file; put the file in its place")
        with path.open("rb") as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise TokenizerError(f"{path} has over {MAX_BYTES >> 20} MiB, more than any tokenizer; {COPY_AGAIN}")
            file.seek(0)
            start = file.read(num_bytes)
    except FileNotFoundError as error:
        raise TokenizerError(f"{path}: {LINK_PROBLEM} {LINK_REMEDY}") from error
    except OSError as error:
        raise TokenizerError(
            f"{path} cannot be read: {error.strerror or error}; let whoever serves it do so"
        ) from error
    if start.startswith(GIT_LFS_START):
        raise TokenizerError(f"{path}: {GIT_LFS_PROBLEM} {GIT_LFS_REMEDY}")
    return start


def _check_text(path: Path) -> None:
    text = _read(path, MAX_BYTES) or b""
    try:
        check_start(text)  # the mark would begin every prompt
        text.decode()
    except JsonError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except UnicodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text ({error}); convert it, or {COPY_AGAIN}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns what a file of JSON holds; nothing, if there is none.

    Raises:
        TokenizerError: It holds something else.
    """
    text = _read(path, MAX_BYTES)
    if text is None:
        return {}
    try:
        return cast("dict[str, Any]", parse_object(text))
    except JsonError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _by_transformers(directory: Path) -> Any:
    # Imported here only: it takes half a second (without torch, which AutoTokenizer would bring along).
    from transformers import PreTrainedTokenizerFast

    try:
        return cast("Any", PreTrainedTokenizerFast).from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # of any kind, the libraries' bare Exceptions included
        raise _unusable(directory, error) from error


def _unusable(directory: Path, error: Exception) -> TokenizerError:
    path = directory / TOKENIZER_FILE
    if path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as own:  # the library raises bare Exceptions
            return TokenizerError(f"{path} is not a tokenizer: {own}; {COPY_AGAIN}")
        others = ", ".join(name for name in JSON_FILES if (directory / name).is_file())
        return TokenizerError(f"{directory}: {others} cannot be followed: {error}; correct them, or {COPY_AGAIN}")
    model = directory / SENTENCEPIECE_FILE
    if model.is_file() and importlib.util.find_spec("sentencepiece") is None:
        return TokenizerError(
            f"{directory} has {SENTENCEPIECE_FILE} and no {TOKENIZER_FILE}, and reading it takes the package "
            f"sentencepiece: `pip install sentencepiece`, or add a {TOKENIZER_FILE}"
        )
    convertible = [name for name in CONVERTIBLE_FILES if (directory / name).is_file()]
    if convertible:
        return TokenizerError(f"{directory / convertible[0]} cannot be converted: {error}; add a {TOKENIZER_FILE}")
    foreign = ", ".join(name for name in FOREIGN_FILES if (directory / name).is_file())
    return TokenizerError(
        f"{directory} has {foreign}, and no {TOKENIZER_FILE}, which is what is read; add one: load the tokenizer with "
        "its own class in transformers (for vocab.json and merges.txt mostly GPT2Tokenizer), and save it with "
        "save_pretrained"
    )


def _check_ids(tokenizer: Tokenizer, directory: Path, config: Mapping[str, Any]) -> None:
    """Refuses files that give one token two ids: the model has learnt one of them."""
    decoder: dict[str, Any] | None = config.get("added_tokens_decoder")
    if decoder is not None:
        said = _added_ids(decoder, directory)
        file, field = CONFIG_FILE, ": added_tokens_decoder"
    else:
        said, file, field = cast("dict[str, int]", read_json_object(directory / ADDED_FILE)), ADDED_FILE, ""
    for content, token_id in said.items():
        found = tokenizer.token_to_id(content)
        if found != token_id:
            raise TokenizerError(
                f"{directory / file}{field} says that {content!r} is token {token_id}, and by {TOKENIZER_FILE} it is "
                f"{found}; give both files from one source"
            )


def _added_ids(decoder: dict[str, Any], directory: Path) -> dict[str, int]:
    """What added_tokens_decoder says: a token's text -> its id."""
    try:
        return {str(token["content"]): int(token_id) for token_id, token in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{directory / CONFIG_FILE}: added_tokens_decoder must give each token's number an object with its content "
            f"({type(error).__name__}: {error}); {COPY_AGAIN}"
        ) from error


def _check_clean_up(found: Any, tokenizer: Tokenizer, directory: Path) -> None:
    if not found.clean_up_tokenization_spaces:
        return
    if isinstance(tokenizer.model, models.BPE) and not getattr(found, FORCED_CLEAN_UP):  # transformers does not do it
        return
    raise TokenizerError(
        f"{directory / CONFIG_FILE}: clean_up_tokenization_spaces is true, which would take spaces out of text that "
        "has been sent already; set it to false"
    )


def _template(found: Any, directory: Path) -> str | None:
    template: Any = found.chat_template
    if isinstance(template, dict):  # several by name
        template = cast("dict[str, Any]", template).get("default")
    if template is None or isinstance(template, str):
        return template
    raise TokenizerError(f"{directory / CONFIG_FILE}: chat_template is a {type(template).__name__}; give a text")
